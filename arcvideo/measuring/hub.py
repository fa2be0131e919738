"""A Hugging Face video model through transformers, such as Qwen2.5-VL: our frames and times, its own processor."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoProcessor
from transformers.video_utils import VideoMetadata

from arcvideo.evaluation.answers import Answer
from arcvideo.layout import MediaLayout
from arcvideo.lineage.identity import folder_digest
from arcvideo.measuring import plain
from arcvideo.measuring.questions import Question
from arcvideo.measuring.read import Read
from arcvideo.measuring.settings import EvaluateSettings
from arcvideo.media.sound import SAMPLE_RATE
from arcvideo.structured import SettingsError
from arcvideo.types import Clip

AUTO = ("AutoModelForImageTextToText", "AutoModelForMultimodalLM", "AutoModelForCausalLM")
"""Classes that are tried in this order; the configuration's own architecture comes first."""


class HubModel:
    """A directory that transformers can load."""

    def __init__(self, settings: EvaluateSettings, *, folder: Path, device: torch.device) -> None:
        """Find the model; its weights are loaded by `load`.

        Raises:
            ValueError: transformers knows neither model nor processor of this directory.
        """
        self.folder, self.device = folder, device
        self.dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        self.style = settings.style or "plain"
        self.wording = settings.wording or "arc"
        self.max_new_tokens = settings.max_new_tokens or (1024 if self.style == "think" else 64)
        try:
            self.config = AutoConfig.from_pretrained(folder, local_files_only=True)
            self.processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
        except (ValueError, OSError, KeyError, ImportError) as error:
            reason = str(error).splitlines()[0]
            raise SettingsError(f"checkpoint={folder}: transformers cannot load it: {reason}") from None
        if not hasattr(self.processor, "video_processor") and not hasattr(self.processor, "image_processor"):
            raise SettingsError(f"checkpoint={folder}: its processor reads neither videos nor pictures")
        self.hears = hasattr(self.processor, "feature_extractor")
        self.model: Any = None

    @property
    def layout(self) -> MediaLayout:
        return plain.FRAMES_LAYOUT

    @property
    def origin(self) -> dict[str, Any]:
        """What decides the answers, besides what is asked."""
        return {
            "model": self.config.model_type,
            "weights": folder_digest(self.folder),
            "style": self.style,
            "wording": self.wording,
            "layout": vars(self.layout),
            "transformers": transformers.__version__,
            "decoding": {"greedy": True, "max_new_tokens": self.max_new_tokens},
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def load(self) -> None:
        """Load the weights.

        Raises:
            ValueError: no class of transformers takes them.
        """
        self.model = self._loaded().to(self.device).eval()

    def _loaded(self) -> Any:
        named = [name for name in self.config.architectures or () if hasattr(transformers, name)]
        reasons = []
        for name in (*named, *(one for one in AUTO if hasattr(transformers, one))):
            try:
                return getattr(transformers, name).from_pretrained(self.folder, dtype=self.dtype, local_files_only=True)
            except (ValueError, OSError, RuntimeError) as error:
                reasons.append(f"{name}: {str(error).splitlines()[0]}")
        raise SettingsError(f"checkpoint={self.folder}: transformers cannot load it: {'; '.join(reasons)}")

    def prompts_digest(self, read: Read) -> str:
        """Return a digest of the texts that are asked about a clip."""
        return plain.prompts_digest(read, wording=self.wording)

    def first_prompt(self, question: Question) -> str:
        """Return the text of a question."""
        return plain.question_text(question, wording=self.wording)

    def ask(self, clips: Iterable[Read]) -> Iterator[tuple[list[Answer], dict[str, float]]]:
        """Yield the answers about one clip at a time."""
        for read in clips:
            began = time.perf_counter()
            answers = [self._answer(one) for one in plain.told(read, wording=self.wording)]
            video = 0.0 if read.seen is None else read.seen.clip.duration
            yield answers, {"answer": time.perf_counter() - began, "video": video}

    @torch.inference_mode()
    def _answer(self, one: plain.Told) -> Answer:
        inputs = self.inputs(one.text, clip=one.clip)
        moved = {
            name: value.to(self.device, self.dtype) if value.is_floating_point() else value.to(self.device)
            for name, value in inputs.items()
            if isinstance(value, torch.Tensor)
        }
        others = {name: value for name, value in inputs.items() if name not in moved}
        own = {"return_audio": False} if hasattr(self.model, "thinker") else {}  # an Omni model can also speak
        made = self.model.generate(
            **moved, **others, **own, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1
        )
        said = made[0, moved["input_ids"].shape[1] :].tolist()
        text = self.processor.tokenizer.decode(said, skip_special_tokens=True)
        return plain.answer_of(one, text=text, tokens=len(said), finished=len(said) < self.max_new_tokens)

    def inputs(self, text: str, *, clip: Clip | None) -> dict[str, Any]:
        """Return what the model reads: the chat template of the model, the frames as a video with their times.

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
            rate, count = plain.frames_a_second(clip), len(clip.frames)
            # At least two frames make a video: such a model reads them in pairs.
            frames = plain.pictures(clip.frames if count > 1 else clip.frames.repeat(2, 1, 1, 1))
            meta = VideoMetadata(
                total_num_frames=len(frames), fps=rate, duration=len(frames) / rate, width=frames.shape[2],
                height=frames.shape[1], frames_indices=list(range(len(frames))),
            )  # fmt: skip
            given = {"videos": [frames], "video_metadata": [meta], "do_sample_frames": False, "fps": rate}
        if hears and clip is not None and clip.waveform is not None:
            given |= {"audio": [clip.waveform.numpy()], "sampling_rate": SAMPLE_RATE}
        return dict(self.processor(text=[written], return_tensors="pt", **given))
