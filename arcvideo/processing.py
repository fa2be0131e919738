"""The processor: files, frames and sound on one side, what the model reads on the other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerFast, ProcessorMixin

from arcvideo import messages as chat
from arcvideo.feed.load import shown
from arcvideo.feed.prompts import Prompt
from arcvideo.layout import MediaLayout
from arcvideo.media.clip import clip_of_frames, read_clip, to_media
from arcvideo.messages import PLAIN_OPTIONS, Attached, file_bytes
from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.disk.carried import auto_map, share, write_code
from arcvideo.model.disk.hub import folder_of
from arcvideo.model.disk.loading import load_config
from arcvideo.model.disk.tokenizer import Template, load_templates, load_tokenizer, save_templates, save_tokenizer
from arcvideo.model.disk.tokenizer import chat_template as own_template
from arcvideo.model.families.table import family_of
from arcvideo.model.positions import replace_newlines, xd_positions
from arcvideo.model.special import special_ids, template_of
from arcvideo.planning.settings import MODALITIES, WORDINGS
from arcvideo.render import MEDIA_TAG, Ids, encode, media_ids, render_branch, render_shared, split_question
from arcvideo.tasks import DEFAULT_TASK, TASKS
from arcvideo.types import Clip, Media, Sample, Turn

PROCESSOR_FILE = "processor_config.json"


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One prompt."""

    ids: Ids
    """(L,) int64 with newline ids."""
    media: tuple[Media, ...]


class ArcVideoProcessor(ProcessorMixin):
    """Makes prompts of questions and media, as training does: same frames, stamps, mels, ids and positions."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        layout: MediaLayout | None = None,
        wording: str = "arc",
        font: str | None = None,
        chat_template: Template | None = None,
    ) -> None:
        """Take the parts.

        Args:
            tokenizer: with the model's special strings.
            layout: shapes the model reads; the released ones by default.
            wording: of the instruction suffixes, `arc` (the released one) or `brief`.
            font: TrueType file of the time stamps; the bundled one by default.
            chat_template: of conversations, or several by name; the model's own by default.
        """
        super().__init__(tokenizer, chat_template=chat_template or own_template(family_of(tokenizer)))
        if wording not in WORDINGS:
            raise ValueError(f"wording={wording!r}: choose one of {', '.join(WORDINGS)}")
        self.layout = layout or MediaLayout()
        self.wording = wording
        self.font = font

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> ArcVideoProcessor:  # type: ignore[override]
        """Return the processor of a folder or a repository of the hub; `wording` and `font` overrule what it stores.

        Raises:
            ValueError: no tokenizer there, or a stored layout that the model beside it does not read.
        """
        directory = folder_of(pretrained_model_name_or_path, options=kwargs)
        path = directory / PROCESSOR_FILE
        stored = json.loads(path.read_text()) if path.is_file() else {}
        choices = {name: kwargs.get(name) or stored.get(name) for name in ("wording", "font")}
        # A directory that no processor wrote may hold the template of another model's processor.
        choices["chat_template"] = kwargs.get("chat_template") or (load_templates(directory) if stored else None)
        layout = MediaLayout(**stored["layout"]) if "layout" in stored else None
        if layout is None or (directory / "config.json").is_file():
            model = load_config(directory).settings.layout
            if layout not in (None, model):
                raise ValueError(f"{path} has {layout}, but the model beside it reads {model}")
            layout = model
        given = {name: value for name, value in choices.items() if value}
        processor = cls(load_tokenizer(directory), layout=layout, **given)
        processor.tokenizer.chat_template = processor.chat_template
        return processor

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Write tokenizer, chat template, layout and wording; the directory works alone and beside a model's files."""
        if push_to_hub:
            raise ValueError("save the processor to a directory and upload that")
        directory = Path(save_directory)
        save_tokenizer(self.tokenizer, directory)
        save_templates(self.chat_template or own_template(family_of(self.tokenizer)), directory)
        (directory / PROCESSOR_FILE).write_text(self.to_json_string())
        write_code(directory)
        share(directory)
        return [str(directory / PROCESSOR_FILE)]

    def to_dict(self) -> dict[str, Any]:
        """Return what `processor_config.json` holds."""
        return {
            "processor_class": type(self).__name__,
            "auto_map": auto_map("AutoProcessor", name=type(self).__name__),
            "layout": asdict(self.layout),
            "wording": self.wording,
            "font": self.font,
        }

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoProcessor") -> None:
        """Do nothing: `save_pretrained` writes the code."""

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "position_ids", "media"]

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

    def clip(
        self,
        frames: np.ndarray | Sequence[np.ndarray],
        *,
        fps: float | None = None,
        times: Sequence[float] | None = None,
        waveform: Tensor | None = None,
    ) -> Clip:
        """Return the same of frames that are already decoded, or that were extracted from a video.

        Args:
            frames: (N, H, W, 3) uint8 RGB, or N of them, in order.
            fps: frames a second.
            times: in place of it, the second of each frame.
            waveform: (n,) float32 mono at 16 kHz; None for a clip without sound.
        """
        heard = None if waveform is None else waveform.detach().cpu().numpy().astype(np.float32)
        return clip_of_frames(frames, fps=fps, times=times, waveform=heard, layout=self.layout, font=self.font)

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

    def prompt(
        self, question: str, *, media: Media | Sequence[Media] | None = None, task: str = DEFAULT_TASK
    ) -> Prompt:
        """Return one question about its media, up to and including `<sep>`.

        Args:
            question: may hold a `<video>` for each of the media, where it stands; they come first otherwise.
            media: from `media`, one or several in the order in which they are shown; None for text alone.
            task: name of a task, which chooses the instruction suffix; or none.

        Raises:
            ValueError: an unknown task, special strings in the question, or another number of tags.
        """
        if task != "none" and task not in TASKS:
            raise ValueError(f"task={task!r}: choose one of {', '.join(TASKS)}, none")
        shown = (media,) if isinstance(media, Media) else tuple(media or ())
        sample = Sample(
            key="question",
            task=task,
            turns=(Turn(question=question, answer=""),),
            media_key=shown[0].key if shown else None,
            media_count=len(shown) or 1,
            instruction=TASKS[task].instruction if task in TASKS else "none",
        )
        branch = render_branch(sample, tokenizer=self.tokenizer, wording=self.wording)
        prefix = np.zeros(0, dtype=np.int64)
        if shown:
            texts, ids = split_question(sample).texts, self._media_ids(shown)
            prefix = render_shared(texts, media=ids, tokenizer=self.tokenizer)
        return Prompt(
            prefix_ids=prefix,
            question_ids=branch.ids[: branch.question_tokens],
            media=shown,
            sample=sample,
            source="processor",
            specials=special_ids(self.tokenizer),
        )

    def _media_ids(self, media: Sequence[Media]) -> list[Ids]:
        frames = [medium.frame_count for medium in media]
        return media_ids(frames, tokenizer=self.tokenizer, layout=self.layout)

    def __call__(  # type: ignore[override]
        self,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        videos: Any = None,
        audio: Any = None,
        *,
        media: Media | Sequence[Media | Sequence[Media] | None] | None = None,
        task: str | None = None,
        **options: Any,
    ) -> BatchFeature:
        """Return a padded batch for `model.generate`: input_ids, attention_mask, position_ids and media.

        Args:
            text: B questions, which get the instruction of their task; or conversations that `apply_chat_template`
                wrote, which stay as they are.
            images: a still picture for each question, or a list of them: a path, bytes, a PIL picture or an array.
            videos: a video for each question, or a list: a path, bytes, or (N, H, W, 3) uint8 frames, which need `fps`.
            audio: a sound for each question, alone or in place of the video's own, or a list: a path, bytes, or (n,)
                float samples at 16 kHz.
            media: from `media`, in place of the three: for each question one, several in the order of its tags, or
                None.
            task: of all questions; an open one by default.
            options: `fps`, frames a second of decoded frames; `padding_side`, left to generate (the default) or right
                to train; others of transformers, where they say what is done anyway.

        Returns:
            input_ids and attention_mask (B, L) int64, position_ids (B, 4, L) int64, media: the clips in order.

        Raises:
            ValueError: media for another number of questions, an option that asks for something else.
        """
        fps, padding_side = options.pop("fps", None), options.pop("padding_side", None) or "left"
        chat.check_options(options, padding_side=padding_side)
        if text is None or not (isinstance(text, str) or all(isinstance(question, str) for question in text)):
            raise ValueError("text must be a question or a list of them; `apply_chat_template` takes conversations")
        questions = [text] if isinstance(text, str) else list(text)
        given = {name: chat.per_row(value, rows=len(questions)) for name, value in
                 (("images", images), ("videos", videos), ("audio", audio))}  # fmt: skip
        shown: list[Any] = [media] if isinstance(media, Media) else list(media or ())
        if isinstance(text, str) and len(shown) > 1:
            shown = [shown]
        if media is not None and any(any(row) for row in given.values()):
            raise ValueError("give either media or images, videos and audio")
        counts = {len(row) for row in given.values()} | ({len(shown)} if media is not None else set())
        if counts != {len(questions)}:
            raise ValueError(f"{len(questions)} questions need as many clips (None for text alone)")
        if media is None:
            attached = [chat.attach(*row, fps=fps) for row in zip(*given.values(), strict=True)]
            shown = [[self._clip(medium) for medium in row] for row in attached]
        rows = [
            self._row(question, media=(row,) if isinstance(row, Media) else tuple(row or ()), task=task or DEFAULT_TASK)
            for question, row in zip(questions, shown, strict=True)
        ]
        return self._batch(rows, left=padding_side == "left")

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return one conversation, or several, as text or as a batch for `model.generate`.

        Args:
            conversation: messages with role and content: a string, or parts of type text, image, video or audio, whose
                file stands under its type, `url` or `path` (without `tokenize` it may be left out), in any message of
                the user. Each is shown where its part stands. Where a first message has one picture and one sound and
                no other has any, they are one clip; `sound` of a video or an image names its sound otherwise. A video
                may be a list of frames with `times`, the second of each, or `fps`.
            chat_template: another template.
            tokenize: return ids in place of text.
            return_dict: with tokenize, return all that `generate` takes.
            add_generation_prompt: changes nothing: a question ends where the answer begins.
            continue_final_message: leave the last message open.
            processor_kwargs: for `__call__`.
            kwargs: for the template, or for `__call__`.

        Raises:
            ValueError: media that cannot be used, or text that holds marks of turns or frames.
        """
        many = bool(conversation) and not isinstance(conversation[0], dict)
        talks = map(chat.messages_of, conversation if many else [conversation])
        attached = [chat.attached(talk, files=tokenize) for talk in talks]
        conversations = [messages for messages, _ in attached]
        for messages in conversations:
            for message in messages:
                parts = message["content"]
                for part in [parts] if isinstance(parts, str) else [p["text"] for p in parts if p["type"] == "text"]:
                    encode(part, tokenizer=self.tokenizer)
        options = {name: kwargs.pop(name) for name in (*PLAIN_OPTIONS, "padding_side") if name in kwargs}
        written = [
            self.tokenizer.apply_chat_template(
                messages,
                chat_template=chat_template or self.chat_template,
                tokenize=False,
                continue_final_message=continue_final_message,
                media_is_read=True,
                **kwargs,
            )
            for messages in conversations
        ]
        if not tokenize:
            return written if many else written[0]
        media = [[self._clip(medium) for medium in listed] for _, listed in attached]
        batch = self(written, media=media, **options, **(processor_kwargs or {}))
        return batch if return_dict else batch["input_ids"]

    def _clip(self, given: Attached) -> Media:
        """Return what the towers read of an attached clip."""
        frames = chat.frames_of(given.picture)
        if frames is not None:
            heard = None if given.sound is None else self._read(given.sound, None).waveform
            return self.media(self.clip(frames, fps=given.fps, times=given.times, waveform=heard))
        if given.picture is None:
            return self.media(self._read(given.sound, None))
        return self.media(self._read(given.picture, given.sound))

    def _read(self, file: Any, sound: Any) -> Clip:
        return read_clip(
            file_bytes(file),
            name=str(file)[:200] if isinstance(file, (str, Path)) else type(file).__name__,
            layout=self.layout,
            sidecar_audio=None if sound is None else file_bytes(sound),
            font=self.font,
        )

    def _row(self, text: str, *, media: tuple[Media, ...], task: str) -> _Row:
        """Return one prompt: a question as training asks it, or a conversation as the chat template wrote it."""
        if not text.startswith(template_of(self.tokenizer).opening):
            return _Row(ids=self.prompt(text, media=media, task=task).ids, media=media)
        before, *after = text.split(MEDIA_TAG)
        if len(after) != len(media):
            raise ValueError(f"the text has {len(after)} {MEDIA_TAG} tags but {len(media)} clips are given")
        pieces = [self._ids(before)]
        for ids, rest in zip(self._media_ids(media), after, strict=True):
            pieces += [ids, self._ids(rest)]
        return _Row(ids=np.concatenate(pieces), media=media)

    def _ids(self, text: str) -> Ids:
        """Return the ids of written turns; marks of frames are the processor's alone to write."""
        special = special_ids(self.tokenizer)
        ids = np.array(self.tokenizer.encode(text, add_special_tokens=False) if text else [], dtype=np.int64)
        turns = {special.start, special.sep, special.end}
        forged = ids[np.isin(ids, [value for value in asdict(special).values() if value not in turns])]
        if len(forged):
            raise ValueError(f"the text holds {self.tokenizer.convert_ids_to_tokens(forged.tolist())}")
        return ids

    def _batch(self, rows: Sequence[_Row], *, left: bool) -> BatchFeature:
        special = special_ids(self.tokenizer)
        longest = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), longest), special.pad)
        mask = torch.zeros(len(rows), longest, dtype=torch.int64)
        positions = torch.zeros(len(rows), 4, longest, dtype=torch.int64)
        for number, row in enumerate(rows):
            raw = torch.from_numpy(row.ids)
            place = slice(longest - len(raw), None) if left else slice(len(raw))
            ids[number, place] = replace_newlines(raw, special=special)
            mask[number, place] = 1
            positions[number, :, place] = xd_positions(raw, special)
        clips = tuple(medium for row in rows for medium in row.media)
        batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        return BatchFeature(batch | {"media": clips} if clips else batch)


AutoProcessor.register(ArcVideoConfig, ArcVideoProcessor)
