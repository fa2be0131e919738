"""Settings of `arcvideo evaluate`, as `key=value` words. No torch here: they are checked before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from arcvideo.evaluation.answers import FULL, NO_SOUND
from arcvideo.evaluation.settings import is_metric, metric_names
from arcvideo.named import brought
from arcvideo.places import writable
from arcvideo.planning.settings import WORDINGS
from arcvideo.structured import SettingsError

NO_PICTURE, OTHER_SOUND, SHIFTED_SOUND, NO_STAMPS = "no_picture", "other_sound", "shifted_sound", "no_stamps"
ARMS = {
    FULL: "picture, sound and time stamps",
    NO_SOUND: "the sound is taken away",
    NO_PICTURE: "the picture is taken away",
    OTHER_SOUND: "the sound of another clip",
    SHIFTED_SOUND: "the sound a third of the clip too late, its end in front",
    NO_STAMPS: "no time stamps on the frames",
}
"""Arm -> what the model gets in it."""
STYLES = ("", "plain", "think")


def _holds_tars(folder: Path) -> bool:
    """Return whether a folder has tar files in it."""
    return folder.is_dir() and next(folder.glob("*.tar"), None) is not None


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """One measurement, a comparison of two, or one that is scored anew."""

    checkpoint: str = ""
    """An export, a released directory, or the folder of a stage."""
    trust_remote_code: bool = False
    """Run the Python files that another maker's checkpoint brings (auto_map), as Keye-VL's does; read them first."""
    bench: str = ""
    """A benchmark (`arcvideo evaluate benches`), `package.module:reader`, or `shards`; by default shards for *.tar."""
    data: str = ""
    """Folder of the benchmark, or tar files: a path with {000..011} braces or * globs."""
    option: dict[str, str] = field(default_factory=dict)
    """Options of the benchmark's reader: option.NAME=VALUE."""
    name: str = ""
    """Of the measurement; by default bench and a digest of everything that decides the answers."""
    out: str = "evaluations"
    """Folder that receives one folder a measurement."""
    arms: list[str] = field(default_factory=lambda: [FULL])
    """What is taken away or exchanged, each in turn; `all` takes every arm."""
    metrics: list[str] = field(default_factory=list)
    """Figures; by default all that the questions' tasks have. Your own: package.module:function. With a tag in
    brackets, `mcq_accuracy[needs:audio]`, over its items alone."""
    tasks: list[str] = field(default_factory=list)
    """Only these tasks; by default all."""
    items: int = 0
    """Questions of each task, spread over the set; 0 asks all."""
    style: str = ""
    """plain, or think: with the instruction suffix, answers in tags. By default what the stage was evaluated with;
    think for a checkpoint that no stage here made."""
    wording: str = ""
    """Wording of the suffix: arc or brief; by default what the checkpoint was trained with."""
    font: str = ""
    """TrueType file of the time stamps; Arial gives the released model the pixels it was trained with."""
    max_new_tokens: int = 0
    """Tokens after which an answer is cut off; 0 takes 1024 for think, 64 for plain."""
    batch_prompts: int = 64
    """Questions answered together."""
    workers: int = 1
    """Decoding processes."""
    features: str = ""
    """Folder of stored tower outputs, such as RUN_DIR/features."""
    device: str = ""
    """cpu or cuda; by default cuda where there is one. bfloat16 there, float32 on the CPU."""
    endpoint: str = ""
    """Base URL of an OpenAI-compatible server, such as http://localhost:8000/v1, in place of a checkpoint."""
    model: str = ""
    """Name of the model at the endpoint."""
    deadline: float = 120.0
    """Seconds after which a request to the endpoint is given up and tried again."""
    tries: int = 5
    """How often a request is tried."""
    proof: bool = True
    """Read a generated clip with a burnt clock first and refuse to measure when its times come back wrong."""
    bootstrap: int = 1000
    """Resamples behind each 95 % interval."""
    seed: int = 0
    """Of the resampling."""
    compare: list[str] = field(default_factory=list)
    """Two folders of measurements: A,B prints A minus B, item by item; nothing is asked."""
    rescore: str = ""
    """Folder of a measurement whose answers are scored anew; nothing is asked."""
    lmms_logs: str = ""
    """Folder of a measurement that is written once more below out=, as lmms-eval writes its logs; nothing is asked."""

    def __post_init__(self) -> None:
        """Check values; the message names the key and the remedy."""
        if self.arms == ["all"]:
            object.__setattr__(self, "arms", list(ARMS))
        for arm in self.arms:
            if arm not in ARMS:
                raise SettingsError(f"arms has {arm!r}, which is unknown; use: {', '.join(ARMS)}, or all")
        for name in self.metrics:
            if not is_metric(name):
                choices = ", ".join([*metric_names(), *brought("metrics")])
                raise SettingsError(
                    f"metrics has {name!r}, which is unknown; use: {choices}, or package.module:function"
                )
        if FULL not in self.arms:
            object.__setattr__(self, "arms", [FULL, *self.arms])  # what the others are compared with
        if self.style not in STYLES:
            raise SettingsError(f"style={self.style!r} is unknown; use plain or think")
        if self.wording and self.wording not in WORDINGS:
            raise SettingsError(f"wording={self.wording!r}: choose one of {', '.join(WORDINGS)}")
        for key, least in (("items", 0), ("max_new_tokens", 0), ("batch_prompts", 1), ("workers", 1), ("bootstrap", 1),
                           ("tries", 1)):  # fmt: skip
            if getattr(self, key) < least:
                raise SettingsError(f"{key}={getattr(self, key)} must be at least {least}")
        if self.compare and len(self.compare) != 2:
            raise SettingsError("compare: give two folders of measurements, compare=A,B")
        if not self.rescore and not writable(Path(self.out)):
            raise SettingsError(f"out={self.out}: cannot be written; give another out=DIR")
        if not self.compare and not self.rescore and not self.lmms_logs:
            self._check_measurement()

    def _check_measurement(self) -> None:
        if bool(self.checkpoint) == bool(self.endpoint):
            raise SettingsError("checkpoint: give checkpoint=DIR, or endpoint=URL with model=NAME")
        if self.endpoint and not self.model:
            raise SettingsError("model: must name the model at the endpoint")
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise SettingsError(f"endpoint={self.endpoint} must begin with http:// or https://")
        if self.checkpoint and not Path(self.checkpoint).is_dir():
            raise SettingsError(f"checkpoint={self.checkpoint}: no such directory")
        if not self.data:
            raise SettingsError("data: must name the folder of the benchmark, or tar files")
        if not self.bench and not self.data.endswith(".tar"):
            tars = f", data='{Path(self.data) / '*.tar'}' for its tar files" if _holds_tars(Path(self.data)) else ""
            raise SettingsError(
                f"bench: must say how data={self.data} is read; `arcvideo evaluate benches` lists them{tars}"
            )
        if self.font and not Path(self.font).is_file():
            raise SettingsError(f"font={self.font}: no such file")
        if "/" in self.name or self.name in (".", ".."):
            raise SettingsError(f"name={self.name!r} must be the name of a folder inside out=")

    @property
    def reader(self) -> str:
        """Which benchmark it is, `shards` for tar files."""
        return self.bench or "shards"
