"""Settings of sampling. No torch here: settings are checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from arcvideo.objectives.settings import DECODE, GrpoSettings
from arcvideo.places import writable
from arcvideo.structured import SettingsError
from arcvideo.tasks import TASKS

PAIRS = ("none", "sampled", "truth")
PREFER = ("first", "best")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How completions are drawn."""

    max_new_tokens: int = 1024
    """Tokens after which a completion is cut off."""
    temperature: float = 1.0
    """0 decodes greedily; log-probabilities are then those at temperature 1."""
    top_p: float = 1.0
    """Nucleus sampling; 1.0 keeps all tokens."""
    top_k: int = 0
    """Sample among the k most likely tokens; 0 keeps all."""
    batch_prompts: int = 64
    """Prompts decoded together (times num_generations rows)."""
    stop: list[str] = field(default_factory=list)
    """Texts that end a completion, besides the end token; they stay in it."""
    decode: str = "auto"
    """dynamic: every turn reads the tokens there are. static: shapes change only when rows leave. cuda_graph: static,
    replayed on a GPU. auto: cuda_graph on a GPU, kernel by kernel where a turn cannot be captured; else dynamic."""
    check_every: int = 0
    """Tokens between two looks at who has finished; 0 looks at each on the CPU and every few on a GPU, where a look
    waits for the device."""

    def __post_init__(self) -> None:
        """Check values."""
        if self.max_new_tokens < 1 or self.batch_prompts < 1 or self.top_k < 0 or self.check_every < 0:
            raise ValueError(
                f"max_new_tokens and batch_prompts must be at least 1, top_k, check_every at least 0: {self}"
            )
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature must not be negative and top_p must be in (0, 1]: {self}")
        if self.decode not in DECODE:
            raise ValueError(f"decode={self.decode!r} is unknown; use one of {', '.join(DECODE)}")
        if not all(self.stop):
            raise ValueError("stop has an empty text: every completion would end at once")


def grpo_sampling(settings: GrpoSettings) -> Sampling:
    """Return the sampling of a GRPO stage."""
    return Sampling(
        max_new_tokens=settings.max_completion_length,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        batch_prompts=settings.num_prompts,
        stop=list(settings.stop),
        decode=settings.decode,
    )


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """Rejection sampling, as `key=value` words of `python -m arcvideo.rejection.sample`."""

    checkpoint: str
    """Directory with config.json, weights and tokenizer."""
    shards: str
    """Tar files with the questions: a path with {000..011} braces or * globs."""
    out: str
    """Folder that receives the shards."""
    name: str = "sampled"
    """Shards are called NAME-000000.tar, ..."""
    tasks: list[str] = field(default_factory=lambda: [name for name, task in TASKS.items() if task.reward])
    """Tasks that are asked; those that bring a reward."""
    tags: list[str] = field(default_factory=list)
    """Only items that carry all of these tags."""
    max_clips: int = 0
    """Only the first so many clips; 0 takes all."""
    items_per_clip: int = 0
    """Questions drawn per clip; 0 asks all."""
    num_generations: int = 8
    """N: answers drawn for every question."""
    keep: int = 1
    """K: answers kept of every question, at most; equal texts count once."""
    prefer: str = "first"
    """Which of more than K passing answers are kept: the first drawn, or the best by reward."""
    rewards: dict[str, str] = field(default_factory=dict)
    """Task -> reward that decides, ours, TRL's or `package.module:function`; by default the task's own."""
    above: dict[str, float] = field(default_factory=dict)
    """Task -> an answer passes when its reward is greater; by default what the task says: 0.6 for spans, else 0.5."""
    require_format: bool = True
    """Only answers that are exactly one think block, not empty, and one answer block pass (with style=think)."""
    pairs: str = "none"
    """none writes kept answers. For `stage=dpo`: sampled pairs the first kept answer with one that failed, truth pairs
    the item's own answer with one of the model's that is worse."""
    style: str = "think"
    """How answers are asked for: think (with the instruction suffix) or plain."""
    wording: str = ""
    """Wording of the instruction: arc or brief; by default what the checkpoint was trained with."""
    temperature: float = 1.0
    """Of drawing."""
    top_p: float = 1.0
    """Nucleus sampling; 1.0 keeps all tokens."""
    top_k: int = 0
    """Draw among the k most likely tokens; 0 keeps all."""
    max_new_tokens: int = 1024
    """Tokens after which an answer is cut off; such answers never pass."""
    stop: list[str] = field(default_factory=list)
    """Texts that end an answer, besides the end token, e.g. `</answer>`; they stay in it."""
    batch_prompts: int = 8
    """Questions decoded together (times num_generations rows)."""
    seed: int = 0
    """With a question's key it fixes all of its answers, whatever else is asked."""
    clips_per_shard: int = 500
    """Clips asked for one shard; also the share of work that ranks take in turn."""
    features: str = ""
    """Folder of stored tower outputs, for example the `features` of the run_dir that made the checkpoint."""
    workers: int = 0
    """Decoding processes; 0 decodes in this one."""
    device: str = ""
    """cpu or cuda; by default cuda where there is one. bfloat16 there, float32 on the CPU."""

    def __post_init__(self) -> None:
        """Check values; the message names the key and the remedy."""
        if not Path(self.checkpoint).is_dir():
            raise SettingsError(f"checkpoint={self.checkpoint}: no such directory")
        if not writable(Path(self.out)):
            raise SettingsError(f"out={self.out}: cannot be written; give another out=DIR")
        for key, choices in (("pairs", PAIRS), ("prefer", PREFER), ("style", ("think", "plain"))):
            if getattr(self, key) not in choices:
                raise SettingsError(f"{key}={getattr(self, key)}: choose one of {', '.join(choices)}")
        least = {"num_generations": 1, "keep": 1, "batch_prompts": 1, "clips_per_shard": 1, "max_new_tokens": 1}
        least |= {"max_clips": 0, "items_per_clip": 0, "top_k": 0, "workers": 0}
        for key, bound in least.items():
            if getattr(self, key) < bound:
                raise SettingsError(f"{key}={getattr(self, key)} must be at least {bound}")
        if self.temperature <= 0:
            raise SettingsError(f"temperature={self.temperature} must be above 0: greedy answers are all the same")
        if not 0 < self.top_p <= 1:
            raise SettingsError(f"top_p={self.top_p} must be in (0, 1]")
        if not self.tasks:
            raise SettingsError(f"tasks is empty: name what is asked, some of {', '.join(TASKS)}")
        for task in () if self.pairs == "truth" else self.tasks:
            if self.reward_of(task) is None:
                raise SettingsError(
                    f"tasks has {task!r}, for which no reward decides: give rewards.{task}=package.module:function"
                )

    def reward_of(self, task: str) -> str | None:
        """Name of the reward that decides; None: the task has none."""
        return self.rewards.get(task) or (TASKS[task].reward if task in TASKS else None)

    def bound_of(self, task: str) -> float:
        """Return what the reward of a passing answer exceeds."""
        return self.above.get(task, TASKS[task].passes_above if task in TASKS else 0.5)

    @property
    def sampling(self) -> Sampling:
        """How the answers are drawn."""
        return Sampling(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            batch_prompts=self.batch_prompts,
            stop=list(self.stop),
        )
