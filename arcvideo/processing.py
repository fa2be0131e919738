"""The processor: files, frames and sound on one side, what the model reads on the other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerFast, ProcessorMixin

from arcvideo.feed.load import shown
from arcvideo.feed.prompts import Prompt
from arcvideo.layout import MediaLayout
from arcvideo.media.clip import as_clip, read_clip, to_media
from arcvideo.media.frames import plan_frames, stamp_text
from arcvideo.media.overlay import stamp
from arcvideo.media.read import ClipArrays, resize
from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.loading import load_config
from arcvideo.model.special import special_ids
from arcvideo.model.tokenizer import load_tokenizer, save_tokenizer
from arcvideo.planning.settings import MODALITIES, WORDINGS
from arcvideo.render import render_branch, render_prefix, split_question
from arcvideo.types import Clip, Media, Sample, Turn

PROCESSOR_FILE = "processor_config.json"

INSTRUCTIONS = {"mcq": "mcq", "grounding": "grounding", "qa": "general", "summary": "general", "chapters": "general"}
"""Task -> instruction suffix (spec 3.2); `none` asks without one."""


class ArcVideoProcessor(ProcessorMixin):
    """Makes prompts of questions and media, as training does: same frames, stamps, mels, ids and positions."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        layout: MediaLayout | None = None,
        wording: str = "arc",
        font: str | None = None,
    ) -> None:
        """Take the parts.

        Args:
            tokenizer: with the model's special strings.
            layout: shapes the model reads; the released ones by default.
            wording: of the instruction suffixes, `arc` (the released one) or `brief`.
            font: TrueType file of the time stamps; the bundled one by default.
        """
        super().__init__(tokenizer)
        if wording not in WORDINGS:
            raise ValueError(f"wording={wording!r}: choose one of {', '.join(WORDINGS)}")
        self.layout = layout or MediaLayout()
        self.wording = wording
        self.font = font

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> ArcVideoProcessor:  # type: ignore[override]
        """Return the processor of a checkpoint directory; `wording` and `font` overrule what it stores.

        Raises:
            ValueError: no tokenizer there.
        """
        directory = Path(str(pretrained_model_name_or_path)) / kwargs.get("subfolder", "")
        path = directory / PROCESSOR_FILE
        stored = json.loads(path.read_text()) if path.is_file() else {}
        choices = {name: kwargs.get(name) or stored.get(name) for name in ("wording", "font")}
        return cls(
            load_tokenizer(directory),
            layout=load_config(directory).settings.layout,
            **{name: value for name, value in choices.items() if value},
        )

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Write tokenizer and wording beside the model's config.json, which holds the layout."""
        if push_to_hub:
            raise ValueError("save the processor to a directory and upload that")
        directory = Path(save_directory)
        save_tokenizer(self.tokenizer, directory)
        written = {"processor_class": type(self).__name__, "wording": self.wording, "font": self.font}
        (directory / PROCESSOR_FILE).write_text(json.dumps(written, indent=1) + "\n")
        return [str(directory / PROCESSOR_FILE)]

    def read(self, file: str | Path, *, sound: str | Path | None = None) -> Clip:
        """Return the decoded, stamped frames and the waveform of a video, an image or a sound file.

        Args:
            file: path.
            sound: a second file, whose sound is used in place of the first one's.

        Raises:
            MediaError: a broken or empty file.
            OSError: a file that cannot be read.
        """
        return read_clip(
            Path(file).read_bytes(),
            name=str(file),
            layout=self.layout,
            sidecar_audio=None if sound is None else Path(sound).read_bytes(),
            font=self.font,
        )

    def clip(self, frames: np.ndarray, *, fps: float, waveform: Tensor | None = None) -> Clip:
        """Return the same of frames that are already decoded.

        Args:
            frames: (N, H, W, 3) uint8 RGB, all frames of the clip in order.
            fps: frames a second.
            waveform: (n,) float32 mono at 16 kHz; None for a clip without sound.
        """
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ValueError(f"frames must be (N, H, W, 3) uint8 RGB, got {frames.shape} {frames.dtype}")
        plan = plan_frames(frame_count=len(frames), fps=fps, max_frames=self.layout.max_frames)
        seen = []
        for index, span in zip(plan.indices, plan.spans, strict=True):
            frame = frames[index].copy()
            stamp(frame, text=stamp_text(span), font=self.font)
            seen.append(resize(frame, size=self.layout.image_size))
        heard = None if waveform is None else waveform.detach().cpu().numpy().astype(np.float32)
        content = [np.ascontiguousarray(frames).tobytes(), b"" if heard is None else heard.tobytes()]
        arrays = ClipArrays(
            key=hashlib.sha256(repr((fps, self.layout, self.font)).encode() + b"".join(content)).hexdigest(),
            frames=np.stack(seen),
            spans=np.asarray(plan.spans, dtype=np.float32),
            waveform=heard,
            duration=len(frames) / fps,
        )
        return as_clip(arrays)

    def media(self, clip: Clip, *, modality: str = "both") -> Media:
        """Return what the towers read of a clip.

        Args:
            clip: from `read` or `clip`.
            modality: `both`, or only the `video` or the `audio` half; the model then reads zeros for the other.

        Raises:
            ValueError: an unknown modality, or a half that the clip does not have.
        """
        if modality not in MODALITIES:
            raise ValueError(f"modality={modality!r}: choose one of {', '.join(MODALITIES)}")
        if (modality == "video" and clip.frames is None) or (modality == "audio" and clip.waveform is None):
            raise ValueError(f"modality={modality}: the file has no {'picture' if modality == 'video' else 'sound'}")
        return shown(to_media(clip, layout=self.layout), modality=modality)

    def prompt(self, question: str, *, media: Media | None = None, task: str = "qa") -> Prompt:
        """Return one question behind its clip, up to and including `<sep>` (spec 3.1).

        Args:
            question: may hold `<video>` where the frames stand; they come first otherwise.
            media: from `media`; None for text alone.
            task: chooses the instruction suffix: mcq, grounding, qa, summary, chapters, or none.

        Raises:
            ValueError: an unknown task, or special strings in the question.
        """
        if task != "none" and task not in INSTRUCTIONS:
            raise ValueError(f"task={task!r}: choose one of {', '.join(INSTRUCTIONS)}, none")
        sample = Sample(
            key="question",
            task=task,
            turns=(Turn(question=question, answer=""),),
            media_key=None if media is None else media.key,
            instruction=INSTRUCTIONS.get(task, "none"),
        )
        branch = render_branch(sample, tokenizer=self.tokenizer, wording=self.wording)
        prefix = np.zeros(0, dtype=np.int64)
        if media is not None:
            before = split_question(sample).before
            count = media.frame_count
            prefix = render_prefix(frame_count=count, before=before, tokenizer=self.tokenizer, layout=self.layout)
        return Prompt(
            prefix_ids=prefix,
            question_ids=branch.ids[: branch.question_tokens],
            media=() if media is None else (media,),
            sample=sample,
            source="processor",
            specials=special_ids(self.tokenizer),
        )

    def __call__(  # type: ignore[override]
        self, text: str | Sequence[str], *, media: Media | Sequence[Media | None] | None = None, task: str = "qa"
    ) -> BatchFeature:
        """Return a left-padded batch for `model.generate`: input_ids, attention_mask, position_ids and media.

        Args:
            text: B questions.
            media: B clips, None where a question has none.
            task: of all questions.

        Returns:
            input_ids and attention_mask (B, L) int64, position_ids (B, 4, L) int64, media: the clips in order.
        """
        questions = [text] if isinstance(text, str) else list(text)
        clips = [media] if media is None or isinstance(media, Media) else list(media)
        clips = clips * len(questions) if media is None else clips
        if len(clips) != len(questions):
            raise ValueError(f"{len(questions)} questions need as many clips (None for text alone), got {len(clips)}")
        prompts = [self.prompt(asked, media=clip, task=task) for asked, clip in zip(questions, clips, strict=True)]
        longest = max(prompt.length for prompt in prompts)
        ids = torch.full((len(prompts), longest), special_ids(self.tokenizer).pad)
        mask = torch.zeros(len(prompts), longest, dtype=torch.int64)
        positions = torch.zeros(len(prompts), 4, longest, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, -prompt.length :] = prompt.input_ids
            mask[row, -prompt.length :] = 1
            positions[row, :, -prompt.length :] = prompt.position_ids
        return BatchFeature(
            {
                "input_ids": ids,
                "attention_mask": mask,
                "position_ids": positions,
                "media": tuple(clip for prompt in prompts for clip in prompt.media),
            }
        )


AutoProcessor.register(ArcVideoConfig, ArcVideoProcessor)
