"""A video model of transformers, such as Qwen2.5-VL or Qwen2.5-Omni: our frames and times, its own processor."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import AutoConfig, AutoProcessor
from transformers.processing_utils import ProcessorMixin
from transformers.video_utils import VideoMetadata

from arcvideo.evaluation.answers import Answer
from arcvideo.lineage.identity import folder_digest
from arcvideo.measuring.answering import own_code, plain
from arcvideo.measuring.settings import EvaluateSettings
from arcvideo.media.sound import SAMPLE_RATE
from arcvideo.named import failure
from arcvideo.structured import SettingsError
from arcvideo.types import Clip

_TICKS = 1000
"""Ticks a second in which the times of frames are told to a processor."""
_REASONS = (
    ValueError, OSError, KeyError, ImportError, RuntimeError, AttributeError, TypeError, StrictDataclassError,
)  # fmt: skip
"""What transformers raises for a directory that it cannot load."""
_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.txt", "*.model")
"""Whatever of a directory decides its answers: weights, settings, chat template, tokenizer."""


class HubModel(plain.PlainModel):
    """A directory that transformers can load; code that lies in it is run with `trust_remote_code` alone."""

    def __init__(self, settings: EvaluateSettings, *, folder: Path, device: torch.device) -> None:
        """Find the model; its weights are loaded by `load`.

        Raises:
            ValueError: transformers knows neither model nor processor of this directory.
        """
        super().__init__(settings)
        self.folder, self.device = folder, device
        self.dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        self.trusted = settings.trust_remote_code and bool(own_code.auto_map(folder))
        self.options = {"local_files_only": True, "trust_remote_code": self.trusted}
        self.config, self.processor = self._opened()
        self.samples = hasattr(self.processor, "video_processor")
        if not self.samples and not _takes_videos(self.processor):
            raise SettingsError(f"checkpoint={folder}: its processor ({type(self.processor).__name__}) reads no videos")
        self.hears = getattr(self.processor, "feature_extractor", None) is not None
        self.weights = folder_digest(folder, patterns=(*_FILES, "*.py") if self.trusted else _FILES)
        self.model: Any = None

    def _opened(self) -> tuple[Any, Any]:
        """Return configuration and processor."""
        if self.trusted:
            own_code.refuse_foreign(self.folder)
        try:
            config = AutoConfig.from_pretrained(self.folder, **self.options)
            if not self.trusted and importlib.util.find_spec("torchvision") is None:
                raise SettingsError(
                    f"checkpoint={self.folder}: transformers reads videos with torchvision: pip install "
                    f"'arcvideo[evaluate]', or torchvision alone, the release that belongs to torch "
                    f"{torch.__version__}; or {own_code.SERVED}"
                )
            return config, AutoProcessor.from_pretrained(self.folder, **self.options)
        except SettingsError:
            raise
        except Exception as error:
            raise self._refused(error, doing="to open") from None

    def _refused(self, error: Exception, *, doing: str) -> Exception:
        """Return what to say of a failure: one line for what transformers refuses or the directory's code does."""
        if self.trusted:
            return own_code.failed(self.folder, doing=doing, error=error)
        if not isinstance(error, _REASONS):
            return error
        if files := own_code.code_files(self.folder):
            return SettingsError(
                f"checkpoint={self.folder}: it needs code that comes with its weights ({', '.join(files)}); read it "
                f"and run it with {own_code.CONSENT}, or {own_code.SERVED}"
            )
        return SettingsError(
            f"checkpoint={self.folder}: transformers {transformers.__version__} cannot load it "
            f"({failure(error, files=())}); {own_code.SERVED}"
        )

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
            **({"own_code": own_code.code_files(self.folder)} if self.trusted else {}),
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
        auto = getattr(transformers, own_code.model_class(self.folder) if self.trusted else own_code.MODEL_CLASSES[0])
        model: Any
        loaded: Any
        try:
            model, loaded = auto.from_pretrained(
                self.folder, config=config, dtype=self.dtype, output_loading_info=True, **self.options
            )
        except Exception as error:
            raise self._refused(error, doing="to load its weights") from None
        if not model.can_generate():
            raise SettingsError(f"checkpoint={self.folder}: its class {type(model).__name__} answers nothing")
        lacking = sorted(str(name) for name in [*loaded["missing_keys"], *loaded["mismatched_keys"]])
        if lacking:
            raise SettingsError(
                f"checkpoint={self.folder}: {len(lacking)} weights of {type(model).__name__} are missing or of another "
                f"shape, the first: {lacking[0]}; nothing that is measured with random ones means anything"
            )
        self.model = model.to(self.device).eval()

    def answers(self, requests: Iterable[plain.Told]) -> list[Answer]:
        """Return the answers to everything that is asked about a clip, one after the other.

        Raises:
            ValueError: code that came with the weights failed.
        """
        answers = []
        for request in requests:
            try:
                answers.append(self._answer(request))
            except Exception as error:
                if not self.trusted:
                    raise
                raise own_code.failed(self.folder, doing=f"to answer {request.question.key}", error=error) from None
        return answers

    @torch.inference_mode()
    def _answer(self, request: plain.Told) -> Answer:
        inputs = self.inputs(request.text, clip=request.clip)
        moved = {
            name: value.to(self.device, self.dtype) if value.is_floating_point() else value.to(self.device)
            for name, value in inputs.items()
        }
        made = self.model.generate(**moved, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1)
        said = made[0, moved["input_ids"].shape[1] :].tolist()
        text = self.processor.tokenizer.decode(said, skip_special_tokens=True)
        return plain.answer_of(request, text=text, tokens=len(said), finished=len(said) < self.max_new_tokens)

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
            given = film(clip) if self.samples else flat_film(clip)
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


def flat_film(clip: Clip) -> dict[str, Any]:
    """Return the same frames for a processor that has no video processor and samples nothing, such as Keye-VL's.

    It takes a list of pictures and the rate, as its authors' utilities hand them over.
    """
    made = film(clip)
    return {"videos": [[Image.fromarray(picture) for picture in made["videos"][0]]], "fps": [made["fps"]]}


def _takes_videos(processor: Any) -> bool:
    """Return whether a processor without a video processor reads videos all the same."""
    own = type(processor).__call__ is not ProcessorMixin.__call__
    return own and "videos" in inspect.signature(processor.__call__).parameters
