"""Settings of the objectives. No torch here: settings are checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass, field

from arcvideo.tasks import default_rewards

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo")
DPO_LOSS_TYPES = ("sigmoid", "hinge", "ipo", "robust", "apo_zero")
IN_PROCESS = "in_process"
"""The sampler of this package, in `grpo.sampler`."""
DECODE = ("auto", "dynamic", "static", "cuda_graph")
KL_ESTIMATORS = ("k1", "k2", "k3")
SCALE_REWARDS = ("group", "batch", "none")
IMPORTANCE_SAMPLING_LEVELS = ("token", "sequence")


@dataclass(frozen=True, kw_only=True)
class NextTokenSettings:
    """Cross entropy on the answers."""

    log_accuracy: bool = True
    """Also report the share of target tokens that are the most likely token."""


@dataclass(frozen=True, kw_only=True)
class GrpoSettings:
    """Group-relative policy optimisation; names and meanings are those of TRL's GRPOConfig."""

    num_generations: int = 8
    """G: completions sampled for every prompt; at least 2, or every advantage would be zero."""
    num_prompts: int = 8
    """Prompts of one optimizer step, over all ranks (TRL: generation_batch_size / num_generations)."""
    max_completion_length: int = 1024
    """Tokens after which a completion is cut off."""
    temperature: float = 1.0
    """Sampling temperature; log-probabilities of policy and reference are taken at the same temperature."""
    top_p: float = 1.0
    """Nucleus sampling; 1.0 keeps all tokens."""
    top_k: int = 0
    """Sample among the k most likely tokens; 0 keeps all."""
    stop: list[str] = field(default_factory=list)
    """Texts that end a completion, besides the end token, e.g. `</answer>`; they stay in it."""
    sampler: str = IN_PROCESS
    """What draws completions: in_process, an entry point `arcvideo.samplers`, or `package.module:Class` that is made
    and asked as `arcvideo.sampling.sampler:InProcessSampler` is."""
    decode: str = "auto"
    """How the sampler decodes: auto (cuda_graph on a GPU, dynamic on the CPU), dynamic, static (shapes change only when
    rows leave) or cuda_graph (static, replayed)."""
    beta: float = 0.1
    """Weight of the KL to the parent checkpoint (paper: 0.1). 0: no reference model is kept."""
    kl_estimator: str = "k3"
    """Estimate of the KL per token: k3 (TRL's), k1 = log(policy / reference), k2 = k1 squared / 2."""
    use_bias_correction_kl: bool = False
    """Multiply the KL by the importance ratio, for an unbiased gradient (TRL does so by default)."""
    epsilon: float = 0.2
    """Clip range of the importance ratio, below 1."""
    epsilon_high: float | None = None
    """Clip range above 1; None: the same as epsilon. For cispo the largest ratio itself (5.0 is common)."""
    loss_type: str = "grpo"
    """How token losses are averaged: grpo, bnpo, dr_grpo, dapo; cispo clips the weight instead of the gradient."""
    scale_rewards: str = "group"
    """What centred rewards are divided by: the std of the group, of the batch, or none."""
    importance_sampling_level: str = "token"
    """token (GRPO) or sequence (GSPO)."""
    num_iterations: int = 1
    """Updates for every set of completions."""
    rewards: dict[str, float] = field(default_factory=dict)
    """Reward name, or `package.module:function`, -> weight; 0 only reports it. Empty: the paper's two, 1.0 each."""
    task_rewards: dict[str, dict[str, float]] = field(default_factory=dict)
    """Task -> its own rewards and weights, used instead of `rewards` for its prompts."""
    task_weights: dict[str, float] = field(default_factory=dict)
    """Task -> factor on the advantages of its prompts, 1.0 if absent. scale_rewards=group cancels any common factor
    of a group's rewards, so only this makes a whole task count less."""
    mask_truncated_completions: bool = False
    """Leave completions that were cut off out of the loss: no policy gradient and no KL. Their rewards still count in
    the mean and the std of their group, as in TRL."""
    clipped_warning: float = 0.5
    """Share of a step's completions cut off at max_completion_length above which a warning names the remedies, once;
    1 never warns."""
    drop_zero_variance: bool = False
    """Leave groups whose rewards are all equal out of the batch: they carry no gradient but the KL's."""
    max_refills: int = 0
    """Times a step may draw `num_prompts` further prompts in place of groups left out (DAPO's dynamic sampling)."""
    require_reward_spread: bool = True
    """Refuse to start when no reward varies within any group of the first rollout."""
    prompts_per_batch: int = 1
    """Prompts whose groups share one packed row (micro-batch)."""
    max_logprob_gap: float = 0.05
    """Largest |log-prob of the sampler - log-prob of the trainer| in nats of a token that is trained on; the others are
    left out of the loss and counted. fp32 stays below 1e-3; bf16 needs about 0.5 (not measured on a GPU)."""
    max_logprob_outliers: float = 0.001
    """Share of a rollout's tokens, over all ranks, that may lie above max_logprob_gap; one always may. More of them end
    the run: sampler and trainer then read different inputs or weights."""
    log_completions: int = 8
    """Completions written to rollouts.jsonl at every step; 0 writes none."""

    def __post_init__(self) -> None:
        """Check values and combinations; the message names the key and the remedy."""
        _among("grpo.loss_type", self.loss_type, LOSS_TYPES)
        _among("grpo.decode", self.decode, DECODE)
        _among("grpo.kl_estimator", self.kl_estimator, KL_ESTIMATORS)
        _among("grpo.scale_rewards", self.scale_rewards, SCALE_REWARDS)
        _among("grpo.importance_sampling_level", self.importance_sampling_level, IMPORTANCE_SAMPLING_LEVELS)
        _at_least("grpo.num_generations", self.num_generations, 2)
        _at_least("grpo.num_prompts", self.num_prompts, 1)
        _at_least("grpo.prompts_per_batch", self.prompts_per_batch, 1)
        _at_least("grpo.max_completion_length", self.max_completion_length, 1)
        _at_least("grpo.num_iterations", self.num_iterations, 1)
        _at_least("grpo.top_k", self.top_k, 0)
        _at_least("grpo.max_refills", self.max_refills, 0)
        _at_least("grpo.beta", self.beta, 0)
        _at_least("grpo.epsilon", self.epsilon, 0)
        if self.temperature <= 0:
            raise ValueError(f"grpo.temperature={self.temperature} must be above 0: greedy groups have no variance")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"grpo.top_p={self.top_p} must be in (0, 1]")
        if not all(self.stop):
            raise ValueError("grpo.stop has an empty text: every completion would end at once")
        if self.max_refills and not self.drop_zero_variance:
            raise ValueError(
                f"grpo.max_refills={self.max_refills} refills what grpo.drop_zero_variance leaves out: set it to true"
            )
        if self.loss_type == "cispo" and self.epsilon_high is None:
            raise ValueError("grpo.loss_type=cispo needs grpo.epsilon_high, the largest ratio itself, for example 5.0")
        if not 0 <= self.clipped_warning <= 1:
            raise ValueError(f"grpo.clipped_warning={self.clipped_warning} is a share: it must be in [0, 1]")
        if not 0 <= self.max_logprob_outliers <= 1:
            raise ValueError(f"grpo.max_logprob_outliers={self.max_logprob_outliers} is a share: it must be in [0, 1]")
        for task, rewards in self.task_rewards.items():
            if not rewards:
                raise ValueError(f"grpo.task_rewards.{task} is empty: name a reward, or leave the task out")
        for task, weight in self.task_weights.items():
            _at_least(f"grpo.task_weights.{task}", weight, 0)

    @property
    def reward_weights(self) -> dict[str, float]:
        """The rewards, resolved. Defaults would be merged into what a YAML file says, so the field has none."""
        return dict(self.rewards) or default_rewards()

    def rewards_of(self, task: str) -> dict[str, float]:
        """Reward -> weight for prompts of a task."""
        return dict(self.task_rewards.get(task, {})) or self.reward_weights

    @property
    def reward_names(self) -> list[str]:
        """All rewards that some task may use, each once."""
        return list(dict.fromkeys([*self.reward_weights, *(n for own in self.task_rewards.values() for n in own)]))

    @property
    def clip_high(self) -> float:
        """Clip range above 1, resolved."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high


@dataclass(frozen=True, kw_only=True)
class DpoSettings:
    """Direct preference optimisation; names and meanings are those of TRL's DPOConfig."""

    beta: float = 0.1
    """How strongly the policy is held to the parent checkpoint; for ipo the paper's tau."""
    loss_type: str = "sigmoid"
    """Loss of a pair: sigmoid (the paper's), hinge, ipo, robust or apo_zero."""
    label_smoothing: float = 0.0
    """For loss_type=robust: share of the pairs that are taken to be labelled the wrong way round."""

    def __post_init__(self) -> None:
        """Check values and combinations; the message names the key and the remedy."""
        _among("dpo.loss_type", self.loss_type, DPO_LOSS_TYPES)
        if self.beta <= 0:
            raise ValueError(f"dpo.beta={self.beta} must be above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"dpo.label_smoothing={self.label_smoothing} must be at least 0 and below 0.5")
        if self.label_smoothing and self.loss_type != "robust":
            raise ValueError(f"dpo.label_smoothing is read by dpo.loss_type=robust only, not by {self.loss_type}")


def _among(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{key}={value!r} is unknown; use one of: {', '.join(allowed)}")


def _at_least(key: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"{key}={value} must be at least {least}")
