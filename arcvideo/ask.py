"""Ask a model about a video: `arcvideo ask checkpoint=DIR video=clip.mp4 question="..." task=grounding`.

The answer is written as it comes, thoughts and answer apart, with the times or the option it names read from it.

  questions=FILE.jsonl out=ANSWERS.jsonl   many questions: a line each with question, video, task, options, and what
                                           else is to stand beside the answer. Answers are written as they come; the
                                           same command goes on where it was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from arcvideo.files import error_line
from arcvideo.places import words_from_home, writable
from arcvideo.processes.command import INTERRUPT_EXIT_CODE, as_command, say_interrupted
from arcvideo.structured import SettingsError, from_words, words_help
from arcvideo.tasks import DEFAULT_TASK, TASKS, RecordError
from arcvideo.tasks.mcq import MCQ, lists_options, with_options
from arcvideo.tasks.task import told_times

if TYPE_CHECKING:
    from torch import Tensor

    from arcvideo.layout import MediaLayout
    from arcvideo.types import Media

TAGS = {"<think>": "think: ", "</think>": "\n", "<answer>": "answer: ", "</answer>": "\n"}
"""Tag in the answer -> what the terminal shows in its place."""


@dataclass(frozen=True, kw_only=True)
class AskSettings:
    """One question, as `key=value` words on the command line."""

    checkpoint: str
    """Directory with config.json, weights and tokenizer."""
    question: str = ""
    """May be left out for tasks that have a standard question, such as summaries."""
    video: str = ""
    """Video, image or sound file, or several with commas between them, each shown where its `<video>` stands in the
    question, in front otherwise; none asks about text alone."""
    audio: str = ""
    """A second file, whose sound replaces the first one's."""
    options: list[str] = field(default_factory=list)
    """Of a multiple choice: its texts with commas between them, listed behind the question."""
    task: str = DEFAULT_TASK
    """Which kind of question it is, and so which instruction follows it; `none` for no instruction."""
    modality: str = "both"
    """Give the model both halves of the file, only its `video` or only its `audio`."""
    wording: str = ""
    """Wording of the instruction: arc or brief; by default what the checkpoint was trained with."""
    font: str = ""
    """TrueType file of the time stamps; Arial gives the released model the very pixels it was trained with."""
    max_new_tokens: int = 1024
    """Tokens after which the answer is cut off."""
    temperature: float = 0.0
    """0 answers greedily."""
    seed: int = 0
    """Of sampling."""
    stop_at_answer: bool = False
    """Stop at `</answer>`, even if the model would go on."""
    questions: str = ""
    """File of questions, one JSON object a line, in place of a question; its files are looked for beside it."""
    out: str = ""
    """File of the answers to `questions`."""
    batch_prompts: int = 16
    """Of `questions`: how many are answered together."""
    device: str = ""
    """cpu or cuda; by default cuda where there is one. bfloat16 there, float32 on the CPU."""

    def __post_init__(self) -> None:
        if self.task != "none" and self.task not in TASKS:
            raise SettingsError(f"task={self.task}: choose one of {', '.join(TASKS)}, none")
        if self.max_new_tokens < 1 or self.temperature < 0:
            raise SettingsError("max_new_tokens must be at least 1 and temperature not negative")
        if self.questions:
            self._check_many()
        elif not self.question and not (self.task in TASKS and TASKS[self.task].question):
            raise SettingsError(f'question: must be set for task={self.task}, like question="What happens?"')
        if self.options and self.task != MCQ.name:
            raise SettingsError(f"options: are those of a multiple choice: task={MCQ.name}, not task={self.task}")
        if self.task == MCQ.name and not self.questions:
            check_options(self.question, options=self.options)
        if not self.video and self.audio:
            raise SettingsError("audio: replaces the sound of video=...; give a sound file alone as video=FILE")
        if self.audio and len(files_of(self.video)) > 1:
            raise SettingsError("audio: replaces the sound of one file; video= names several")
        if not Path(self.checkpoint).is_dir():
            raise SettingsError(f"checkpoint={self.checkpoint}: no such directory")
        for key in ("video", "audio", "font"):
            if getattr(self, key) and not Path(getattr(self, key)).is_file():
                raise SettingsError(f"{key}={getattr(self, key)}: no such file")

    def _check_many(self) -> None:
        for key in ("question", "video", "audio", "options"):
            if getattr(self, key):
                raise SettingsError(f"{key}: stands in the lines of questions={self.questions}")
        if not self.out:
            raise SettingsError("out: must name the file of the answers, like out=answers.jsonl")
        if not writable(Path(self.out).parent):
            raise SettingsError(f"out={self.out}: cannot be written; give another file")
        if not Path(self.questions).is_file():
            raise SettingsError(f"questions={self.questions}: no such file")
        if self.batch_prompts < 1:
            raise SettingsError(f"batch_prompts={self.batch_prompts} must be at least 1")


def check_options(question: str, *, options: Sequence[str]) -> None:
    """Refuse a multiple choice without anything to choose from.

    Raises:
        SettingsError: neither options, nor a list of them in the question; or options that are no list of texts.
    """
    if not options and not lists_options(question):
        raise SettingsError(
            "options: a multiple choice needs some: options=red,blue, or lines like A.red and B.blue in the question; "
            "without any ask with task=qa"
        )
    if options:
        try:
            with_options(question, options)
        except RecordError as error:
            raise SettingsError(f"options: {error.detail}") from None


def read_words(words: list[str]) -> AskSettings:
    """Return the settings of `key=value` words.

    Raises:
        SettingsError: a word that is no setting, or a value that does not fit.
    """
    return from_words(AskSettings, words, example="task=qa")


class TerminalWriter:
    """What `generate` streams to: shows text as soon as it is whole, with headings in place of tags."""

    def __init__(self, tokenizer: Any, *, out: TextIO, prompt_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.out = out
        self.skipped = prompt_tokens
        self.ids: list[int] = []
        self.shown = 0
        self.fresh_line = True

    @property
    def text(self) -> str:
        """Everything the model said so far."""
        return self.tokenizer.decode(self.ids, skip_special_tokens=True)

    def put(self, value: Tensor) -> None:
        """Take the next tokens; the prompt's come first and are passed over."""
        ids = value.flatten().tolist()
        passed = min(self.skipped, len(ids))
        self.skipped -= passed
        self.ids += ids[passed:]
        self._show(last=False)

    def end(self) -> None:
        """Show what was held back."""
        self._show(last=True)
        self._write("" if self.fresh_line else "\n")

    def _show(self, *, last: bool) -> None:
        text = self.text
        # Half a character decodes to a replacement mark, half a tag looks like text: both wait for their rest.
        whole = text if last else text.rstrip("\N{REPLACEMENT CHARACTER}")
        whole = whole if last else whole[: len(whole) - _open_tag(whole)]
        for piece in _pieces(whole[self.shown :]):
            heading = TAGS.get(piece)
            if heading is None:
                self._write(piece)
            elif heading != "\n":
                self._write(heading if self.fresh_line else f"\n{heading}")
            elif not self.fresh_line:
                self._write("\n")
        self.shown = max(self.shown, len(whole))

    def _write(self, text: str) -> None:
        if text:
            self.out.write(text)
            self.out.flush()
            self.fresh_line = text.endswith("\n")


def _open_tag(text: str) -> int:
    """Return how many characters at the end may become a tag."""
    return max((n for tag in TAGS for n in range(1, len(tag)) if text.endswith(tag[:n])), default=0)


def _pieces(text: str) -> Iterator[str]:
    """Yield tags and the text between them."""
    while text:
        first = min((text.find(tag), tag) for tag in TAGS if tag in text) if any(tag in text for tag in TAGS) else None
        if first is None:
            yield text
            return
        place, tag = first
        if place:
            yield text[:place]
        yield tag
        text = text[place + len(tag) :]


def readings(text: str, *, task: str) -> list[str]:
    """Return what the answer names, one line each, as its task reads it; without a task every time range."""
    return TASKS[task].tell(text) if task in TASKS else told_times(text)


def notes(media: Media, *, seconds: float, layout: MediaLayout, sound: float = 0.0) -> list[str]:
    """Return what a user should know about how the file is seen and heard.

    Args:
        media: what the model gets.
        seconds: of the file, those of the picture where it has one.
        layout: of the model.
        sound: seconds of the file's sound.
    """
    from arcvideo.media.frames import behind_picture

    lines = []
    if not media.has_video:
        lines.append("no picture: the model sees zeros (docs/modalities.md)")
    if not media.has_audio:
        lines.append("no sound: the model hears zeros (docs/modalities.md)")
    behind = behind_picture(sound=sound, picture=seconds) if media.has_video and media.has_audio else 0.0
    if behind:
        lines.append(
            f"the picture ends at {seconds:.0f} s: {behind:.0f} s of sound behind it are not heard; "
            "give the sound as a file of its own (ffmpeg -i FILE -vn sound.wav) to have it heard"
        )
    frames, heard = layout.max_frames, layout.max_seconds
    if media.has_video and seconds > frames:
        lines.append(f"{seconds:.0f} s in {frames} frames: each stands for {seconds / frames:.1f} s")
    if seconds > heard:
        lines.append(
            f"longer than {heard} s: only {heard / frames:g} s from each of {frames} parts of the sound are heard; "
            f"pieces of at most {heard} s, asked one by one, give better answers"
        )
    return lines


def ask(settings: AskSettings, *, out: TextIO, err: TextIO) -> str:
    """Answer one question on `out`; returns the whole answer.

    Raises:
        ValueError: settings, weights or a question that cannot be used.
        MediaError: a broken file.
        OSError: a file that cannot be read.
    """
    import torch

    from arcvideo.lineage.parents import checkpoint_folder
    from arcvideo.measuring.answering.ours import trained_processor
    from arcvideo.media.sound import SAMPLE_RATE
    from arcvideo.model.disk.loading import load_frozen
    from arcvideo.sampling.sampler import banned_ids, stop_ids

    folder = checkpoint_folder(Path(settings.checkpoint))
    processor = trained_processor(folder, wording=settings.wording, font=settings.font)
    media = []
    files = files_of(settings.video)
    for file in files:
        clip = processor.read(file, sound=settings.audio or None)
        media.append(processor.media(clip, modality=settings.modality))
        sound = 0.0 if clip.waveform is None else clip.waveform.numel() / SAMPLE_RATE
        for note in notes(media[-1], seconds=clip.duration, layout=processor.layout, sound=sound):
            print(f"note: {file}: {note}" if len(files) > 1 else f"note: {note}", file=err)
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    inputs = processor(_question(settings), media=[media], task=settings.task)
    model = load_frozen(folder, device=device)
    stop = stop_ids(processor.tokenizer)
    writer = TerminalWriter(processor.tokenizer, out=out, prompt_tokens=inputs["input_ids"].shape[1])
    sampling: Mapping[str, Any] = {"do_sample": False}
    if settings.temperature > 0:
        torch.manual_seed(settings.seed)
        sampling = {"do_sample": True, "temperature": settings.temperature, "top_k": 0}
    stopping = {"stop_strings": ["</answer>"], "tokenizer": processor.tokenizer} if settings.stop_at_answer else {}
    with torch.inference_mode():
        model.generate(
            **{name: value.to(device) if name != "media" else value for name, value in inputs.items()},
            max_new_tokens=settings.max_new_tokens,
            eos_token_id=sorted(stop),
            # Marks of frames and turns are never answers.
            suppress_tokens=sorted(banned_ids(processor.tokenizer, stop=stop)),
            streamer=writer,
            **sampling,
            **stopping,
        )
    for line in readings(writer.text, task=settings.task):
        print(line, file=out)
    if not stop & set(writer.ids) and len(writer.ids) >= settings.max_new_tokens:
        print(f"note: cut off after max_new_tokens={settings.max_new_tokens}", file=err)
    return writer.text


def files_of(video: str) -> list[str]:
    """Return the files of `video=`; a comma in the name of a file that is there separates nothing."""
    return [video] if video and Path(video).exists() else [name for name in video.split(",") if name]


def _question(settings: AskSettings) -> str:
    """Return the question with its options, the standard one of the task where none was given."""
    question = settings.question or TASKS[settings.task].question
    return with_options(question, settings.options) if settings.options else question


def main(words: list[str] | None = None) -> int:
    """Answer, or say in one line what is wrong; returns the exit status."""
    from arcvideo.media.errors import MediaError

    words = words_from_home(words)
    if not words or {"-h", "--help"} & set(words):
        print(f"{__doc__}\n{words_help(AskSettings)}")
        return 0
    try:
        settings = read_words(words)
        if settings.questions:
            from arcvideo.measuring.many import ask_many

            print(ask_many(settings))
        else:
            ask(settings, out=sys.stdout, err=sys.stderr)
    except MediaError as error:
        print(f"error: video: {error}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"error: {error_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = "; the same command goes on from here" if any(word.startswith("questions=") for word in words) else ""
        say_interrupted(again)
        return INTERRUPT_EXIT_CODE
    return 0


if __name__ == "__main__":
    as_command(main)
