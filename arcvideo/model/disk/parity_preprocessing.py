"""The preprocessing half of a fixture set: PREFIX_preproc.json and PREFIX_preproc.safetensors.

Frame indices, stamps, sound rules, the fusion table, resized frames, log-mels, and the ids, labels and positions of
conversations. Whole numbers and texts must be equal: their difference is the number of places that differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from arcvideo.layout import MediaLayout
from arcvideo.media.audio import SAMPLE_RATE, cut_waveform, fit_waveform, mel_chunks
from arcvideo.media.frames import plan_frames, stamp, stamp_text
from arcvideo.media.read import resize
from arcvideo.model.arc_hunyuan.parts import rows_per_frame
from arcvideo.model.positions import replace_newlines, xd_positions
from arcvideo.model.special import special_ids
from arcvideo.model.towers.media import normalize_pixels
from arcvideo.render import MEDIA_TAG, media_ids, render_branch, render_shared, render_whole, split_question
from arcvideo.types import Sample, Turn

Difference = tuple[str, float]
FRAMES = 150
"""max_num_frame of the released preprocessing, which these fixtures come from."""
CHUNK = 30 * SAMPLE_RATE


class ByteTokenizer:
    """The fixtures' stand-in: every UTF-8 byte is its own id, the listed strings are single ids."""

    def __init__(self, specials: Mapping[str, int]) -> None:
        self.specials = dict(specials)
        self.pattern = re.compile("(" + "|".join(re.escape(text) for text in self.specials) + ")")

    def get_vocab(self) -> dict[str, int]:
        """Return the strings with ids of their own."""
        return self.specials

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Return the ids of a text."""
        ids: list[int] = []
        for piece in self.pattern.split(text):
            ids += [self.specials[piece]] if piece in self.specials else piece.encode()
        return ids

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the special strings of ids, and the numbers of others."""
        names = {number: text for text, number in self.specials.items()}
        return [names.get(number, str(number)) for number in ids]


def has_preprocessing(folder: Path, prefix: str) -> bool:
    """Return whether the set has this half."""
    return (folder / f"{prefix}_preproc.json").exists()


def preprocessing_differences(folder: Path, prefix: str) -> Iterator[Difference]:
    """Yield name and largest absolute difference of everything the two files hold."""
    facts: dict[str, Any] = json.loads((folder / f"{prefix}_preproc.json").read_text())
    tensors = load_file(folder / f"{prefix}_preproc.safetensors")
    yield from _frames(facts.get("frame_sampling", ()))
    yield from _sound(facts.get("audio", ()))
    yield from _fusion(facts.get("fusion_table", ()))
    yield from _pixels(tensors)
    yield from _mel(tensors)
    for name in sorted(name for name in tensors if re.fullmatch(r"overlay\d+\.geometry", name)):
        yield _overlay(name, tensors[name].tolist())
    if "conversations" in facts:
        tokenizer = ByteTokenizer(facts["special_ids"])
        for number, case in enumerate(facts["conversations"]):
            yield from _conversation(f"conv{number}", case, tokenizer=tokenizer, tensors=tensors)


def _places(name: str, ours: Sequence[Any], theirs: Sequence[Any]) -> Difference:
    """Compare lists place by place."""
    differ = sum(a != b for a, b in zip(ours, theirs, strict=False))
    return name, float(differ + abs(len(ours) - len(theirs)))


def _gap(name: str, ours: Tensor, theirs: Tensor) -> Difference:
    if ours.shape != theirs.shape:
        return f"{name} shape {tuple(ours.shape)} != {tuple(theirs.shape)}", float("inf")
    return name, float((ours.double() - theirs.double()).abs().max())


def _frames(cases: Sequence[Mapping[str, Any]]) -> Iterator[Difference]:
    for case in cases:
        name = f"frames {case['vlen']} at {case['fps']}"
        plan = plan_frames(frame_count=case["vlen"], fps=case["fps"], max_frames=FRAMES)
        yield _places(f"{name}: indices", plan.indices, case["indices"])
        rounded = [[round(start), round(end)] for start, end in plan.spans]
        yield _places(f"{name}: seconds", rounded, case["interval_seconds_train"])
        yield _places(f"{name}: stamps", [stamp_text(span) for span in plan.spans], case["stamp_text"])


def _sound(cases: Sequence[Mapping[str, Any]]) -> Iterator[Difference]:
    for case in cases:
        samples = case["samples"]
        cut = cut_waveform(torch.arange(samples), pieces=FRAMES, seconds=2 * FRAMES)
        frames = min(FRAMES, -(-max(samples, SAMPLE_RATE) // SAMPLE_RATE))
        span = fit_waveform(torch.empty(samples), frame_count=frames, video_seconds=None, max_frames=FRAMES)
        chunks = -(-span.waveform.numel() // CHUNK)
        ours = [cut.numel(), span.waveform.numel(), span.seconds, chunks]
        theirs = [case[key] for key in ("cut_len", "padded_len", "duration", "num_mel_chunks")]
        yield _places(f"sound of {samples} samples", ours, theirs)
        if case.get("segments"):
            pieces = cut.view(FRAMES, -1)
            # The first three and the last two pieces are listed.
            ends = [[int(pieces[i, 0]), int(pieces[i, -1]) + 1] for i in (0, 1, 2, -2, -1)]
            yield _places(f"sound of {samples} samples: pieces", ends, case["segments"])


def _fusion(table: Sequence[Sequence[int]]) -> Iterator[Difference]:
    ours = []
    for seconds, *_ in table:
        frames = min(seconds, FRAMES)
        per = rows_per_frame(seconds, max_num_frame=FRAMES, rows_per_second=50)
        ours.append([seconds, per, frames, frames * per - seconds * 50])
    if table:
        yield _places("fusion table", ours, table)


def _pixels(tensors: Mapping[str, Tensor]) -> Iterator[Difference]:
    if "resize.frame_u8" not in tensors:
        return
    wanted = tensors["resize.resized_u8"]
    resized = torch.from_numpy(resize(tensors["resize.frame_u8"].numpy(), size=wanted.shape[0]).copy())
    yield _gap("resize.resized_u8", resized, wanted)
    normalised = normalize_pixels(resized.permute(2, 0, 1)[None], dtype=torch.float32)[0]
    yield _gap("resize.normalized", normalised, tensors["resize.normalized"])


def _mel(tensors: Mapping[str, Tensor]) -> Iterator[Difference]:
    if "mel.waveform_i16" not in tensors:
        return
    (first,) = (name for name in tensors if name.startswith("mel.first_"))
    wanted = tensors[first]
    wave = tensors["mel.waveform_i16"].float() / 32768
    mel = mel_chunks(wave, mel_bins=wanted.shape[0], chunk_samples=CHUNK)[0]
    yield _gap(first, mel[:, : wanted.shape[1]], wanted)
    yield _gap("mel.tail_value", mel[:1, -1], tensors["mel.tail_value"])


def _overlay(name: str, geometry: Sequence[int]) -> Difference:
    """Compare the box's fixed corner and the font size; the other edges depend on a font that is not free."""
    width, height, start, end, size, _, top, right, _ = geometry
    frame = np.full((height, width, 3), 90, dtype=np.uint8)
    stamp(frame, text=stamp_text((start, end)))
    rows, columns = np.nonzero((frame != 90).any(axis=2))
    ours = [int(0.05 * height), int(rows.min()), int(columns.max())]
    return _places(f"{name}: font size, top and right edge", ours, [size, top, right])


def _conversation(
    name: str, case: Mapping[str, Any], *, tokenizer: ByteTokenizer, tensors: Mapping[str, Tensor]
) -> Iterator[Difference]:
    # Every `<image>` is a frame: a medium of one frame where it stands.
    said = [turn["value"].replace("<image>", MEDIA_TAG) for turn in case["conversations"]]
    turns = tuple(Turn(question=q, answer=a) for q, a in zip(said[::2], said[1::2], strict=True))
    sample = Sample(key=name, task="qa", turns=turns, media_key=name, media_count=case["num_image"])
    layout = MediaLayout(image_size=case["image_size"])
    media = media_ids([1] * case["num_image"], tokenizer=tokenizer, layout=layout)
    question = split_question(sample)
    if question.later:
        branch, prefix = render_whole(sample, media=media, tokenizer=tokenizer, wording="arc"), np.zeros(0, np.int64)
    else:
        branch = render_branch(sample, tokenizer=tokenizer, wording="arc")
        prefix = render_shared(question.texts, media=media, tokenizer=tokenizer)
    special = special_ids(tokenizer)
    ids = torch.from_numpy(np.concatenate([prefix, branch.ids]))
    supervised = torch.from_numpy(np.concatenate([np.zeros(len(prefix), dtype=bool), branch.is_target]))
    yield _gap(f"{name}.input_ids", replace_newlines(ids, special=special), tensors[f"{name}.input_ids"])
    yield _gap(f"{name}.labels", ids.where(supervised, -100), tensors[f"{name}.labels"])
    positions = xd_positions(ids, special, restart_after_eod=True)
    yield _gap(f"{name}.position_ids", positions, tensors[f"{name}.position_ids"])
