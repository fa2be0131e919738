"""A video model of transformers, such as Qwen2.5-VL or Qwen2.5-Omni: our frames and times, its own processor."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.video_utils import VideoMetadata

from arcvideo.evaluation.answers import Answer
from arcvideo.lineage.identity import folder_digest
from arcvideo.measuring.answering import plain
from arcvideo.measuring.settings import EvaluateSettings
from arcvideo.media.sound import SAMPLE_RATE
from arcvideo.structured import SettingsError
from arcvideo.types import Clip

_TICKS = 1000
"""Ticks a second in which the times of frames are told to a processor."""
_REASONS = (
    ValueError, OSError, KeyError, ImportError, RuntimeError, AttributeError, TypeError, StrictDataclassError,
)  # fmt: skip
"""What transformers raises for a directory that it cannot load."""


class HubModel(plain.PlainModel):
    """A directory that transformers can load; code that lies in it is never run."""

    def __init__(self, settings: EvaluateSettings, *, folder: Path, device: torch.device) -> None:
        """Find the model; its weights are loaded by `load`.

        Raises:
            ValueError: transformers knows neither model nor processor of this directory.
        """
        super().__init__(settings)
        self.folder, self.device = folder, device
        self.dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        known: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self.config = AutoConfig.from_pretrained(folder, **known)
            if importlib.util.find_spec("torchvision") is None:
                raise SettingsError(
                    f"checkpoint={folder}: transformers reads videos with torchvision: pip install "
                    f"'arcvideo[evaluate]', or torchvision alone, the release that belongs to torch "
                    f"{torch.__version__}; or serve it and give endpoint=URL model=NAME"
                )
            self.processor: Any = AutoProcessor.from_pretrained(folder, **known)
        except SettingsError:
            raise
        except _REASONS as error:
            raise _refused(folder, reason=str(error)) from None
        if not hasattr(self.processor, "video_processor"):
            raise SettingsError(f"checkpoint={folder}: its processor ({type(self.processor).__name__}) reads no videos")
        self.hears = getattr(self.processor, "feature_extractor", None) is not None
        self.weights = folder_digest(folder)
        self.model: Any = None

    @property
    def origin(self) -> dict[str, Any]:
        """What decides the answers, besides what is asked."""
        return {
            "model": self.config.model_type,
            "weights": self.weights,
            "style": self.style,
            "wording": self.wording,
            "sound": "given behind the frames" if self.hears else "not given: the model takes none",
            "layout": vars(self.layout),
            "transformers": transformers.__version__,
            "decoding": {"greedy": True, "max_new_tokens": self.max_new_tokens},
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def load(self) -> None:
        """Load the weights.

        Raises:
            ValueError: transformers has no class for them, or the files lack some of them.
        """
        # A model that can also speak answers with the half of it that thinks.
        config = getattr(self.config, "thinker_config", self.config)
        model: Any
        loaded: Any
        try:
            model, loaded = AutoModelForImageTextToText.from_pretrained(
                self.folder, config=config, dtype=self.dtype, local_files_only=True, trust_remote_code=False,
                output_loading_info=True,
            )  # fmt: skip
        except _REASONS as error:
            raise _refused(self.folder, reason=str(error)) from None
        lacking = sorted(str(name) for name in [*loaded["missing_keys"], *loaded["mismatched_keys"]])
        if lacking:
            raise SettingsError(
                f"checkpoint={self.folder}: {len(lacking)} weights of {type(model).__name__} are missing or of another "
                f"shape, the first: {lacking[0]}; nothing that is measured with random ones means anything"
            )
        self.model = model.to(self.device).eval()

    def answers(self, asked: Iterable[plain.Told]) -> list[Answer]:
        """Return the answers to everything that is asked about a clip, one after the other."""
        return [self._answer(one) for one in asked]

    @torch.inference_mode()
    def _answer(self, one: plain.Told) -> Answer:
        inputs = self.inputs(one.text, clip=one.clip)
        moved = {
            name: value.to(self.device, self.dtype) if value.is_floating_point() else value.to(self.device)
            for name, value in inputs.items()
        }
        made = self.model.generate(**moved, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1)
        said = made[0, moved["input_ids"].shape[1] :].tolist()
        text = self.processor.tokenizer.decode(said, skip_special_tokens=True)
        return plain.answer_of(one, text=text, tokens=len(said), finished=len(said) < self.max_new_tokens)

    def inputs(self, text: str, *, clip: Clip | None) -> dict[str, torch.Tensor]:
        """Return what the model reads: its own chat template, the frames as a video with their times, then the sound.

        Args:
            text: question and instruction.
            clip: None for text alone.
        """
        sees = clip is not None and clip.frames is not None
        hears = clip is not None and clip.waveform is not None and self.hears
        parts = [{"type": "video"}] * sees + [{"type": "audio"}] * hears + [{"type": "text", "text": text}]
        written = self.processor.apply_chat_template(
            [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
        )
        given: dict[str, Any] = {}
        if clip is not None and clip.frames is not None:
            given = film(clip)
        if hears and clip is not None and clip.waveform is not None:
            given |= {"audio": [clip.waveform.numpy()], "sampling_rate": SAMPLE_RATE}
        made = self.processor(text=[written], return_tensors="pt", **given)
        return {name: torch.as_tensor(value) for name, value in made.items() if name != "video_metadata"}


def film(clip: Clip) -> dict[str, Any]:
    """Return the frames of a clip and their times as processors take a video that is not to be sampled again.

    A frame stands for its interval, so its time is the middle of it. The rate is one frame an interval, whatever the
    last of them is cut to. A single frame is shown twice: such models read frames in pairs.
    """
    assert clip.frames is not None
    start, end = clip.frame_times[0].tolist()
    spans = clip.frame_times.tolist()
    frames = clip.frames
    if len(spans) == 1:
        spans, frames = spans * 2, frames.repeat(2, 1, 1, 1)
    pixels = plain.pictures(frames)
    meta = VideoMetadata(
        total_num_frames=round(len(spans) * (end - start) * _TICKS),
        fps=float(_TICKS),
        duration=len(spans) * (end - start),
        height=pixels.shape[1],
        width=pixels.shape[2],
        frames_indices=[round((first + last) / 2 * _TICKS) for first, last in spans],
    )
    return {"videos": [pixels], "video_metadata": [meta], "do_sample_frames": False, "fps": 1 / (end - start)}


def _refused(folder: Path, *, reason: str) -> SettingsError:
    first = next(iter(reason.splitlines()), "no reason given")
    return SettingsError(
        f"checkpoint={folder}: transformers {transformers.__version__} cannot load it ({first}), and code that comes "
        "with weights is never run; serve it, for example with vLLM, and give endpoint=URL model=NAME"
    )
