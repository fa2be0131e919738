"""Base weights of the tiny model: `python -m arcvideo.synthetic.base --data DIR --out DIR` (docs/decisions/0002).

The stand-in for the released vision-language model and Whisper encoder. It reads training shards only, with the truth
that TinyShorts records carry; the six stages see media, questions and answers.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError

from arcvideo.files import error_line, write_whole
from arcvideo.layout import MediaLayout
from arcvideo.lineage.lock import alone_filling
from arcvideo.media.clip import read_clip, to_media
from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.disk.loading import save_model
from arcvideo.model.disk.tokenizer import build_tiny_tokenizer, save_tokenizer
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.settings import ModelSettings
from arcvideo.model.special import special_ids
from arcvideo.model.towers.features import store_of
from arcvideo.places import CONF_DIR, words_from_home, writable
from arcvideo.processes.children import end_with_parent, start_deaf
from arcvideo.processes.command import as_command
from arcvideo.progress import watched
from arcvideo.seals import write_sums
from arcvideo.structured import filled
from arcvideo.synthetic.prose import corpus, train_language
from arcvideo.synthetic.script import script_from
from arcvideo.synthetic.towers import Known, train_audio, train_vision

REPORT = "base.json"
"""Written last: what was trained, and how well."""


def make_base(options: argparse.Namespace) -> dict[str, float]:
    """Train towers and decoder, save the directory that the first stage starts from, and return what was reached."""
    torch.manual_seed(options.seed)
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = filled(ModelSettings, yaml.safe_load(options.model.read_text()))
    clips = _known(options.data, layout=settings.layout, workers=options.workers)
    scripts = [clip.script for clip in clips]
    tokenizer = build_tiny_tokenizer(corpus(scripts), family=settings.family)
    special = special_ids(tokenizer)
    model = ArcVideoForConditionalGeneration(
        ArcVideoConfig.from_settings(settings, vocab_size=len(tokenizer), special=special)
    ).requires_grad_(True)
    reached: dict[str, float] = {}
    for name, train in (
        ("language", lambda: _language(model, scripts, tokenizer=tokenizer, options=options)),
        ("vision", lambda: _vision(model, clips, tokenizer=tokenizer, options=options)),
        ("audio", lambda: train_audio(model, clips, steps=options.audio_steps, per_step=16)),
        ("features", lambda: _fill_features(model, clips, root=options.features)),
    ):
        began = time.monotonic()
        reached[name] = train()
        # Said and not written: stages count the files of this folder as what they started from.
        print(f"base weights: {name} {reached[name]:.3f} in {time.monotonic() - began:.1f} s", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    save_model(model, options.out)
    save_tokenizer(tokenizer, options.out)
    write_sums(options.out, but=(REPORT,))
    # Last: its presence says that the directory is complete.
    write_whole(options.out / REPORT, json.dumps(reached, indent=1) + "\n")
    return reached


def _language(
    model: ArcVideoForConditionalGeneration, scripts: Sequence[Any], *, tokenizer: Any, options: argparse.Namespace
) -> float:
    return train_language(model, scripts=scripts, tokenizer=tokenizer, steps=options.language_steps, seed=options.seed)


def _vision(
    model: ArcVideoForConditionalGeneration, clips: Sequence[Known], *, tokenizer: Any, options: argparse.Namespace
) -> float:
    return train_vision(model, clips, tokenizer=tokenizer, steps=options.vision_steps, frames=32)


def _known(folder: Path, *, layout: MediaLayout, workers: int) -> list[Known]:
    """Return all training clips, decoded, with their truth."""
    shards = sorted(folder.glob("train-*.tar"))
    if not shards:
        raise ValueError(f"{folder} has no train-*.tar: make them with `python -m arcvideo.synthetic --out {folder}`")
    members = [member for shard in shards for member in _members(shard)]
    jobs = [(name, content, truth, layout) for name, content, truth in members]
    with ProcessPoolExecutor(max_workers=workers, initializer=_start, initargs=(os.getpid(),)) as pool:
        start_deaf(pool, workers=workers)
        clips = pool.map(_decode, jobs, chunksize=16)
        return list(watched(clips, what="decoding", total=len(jobs), unit="clip"))


def _start(parent: int) -> None:
    """Begin a decoding process: it needs one thread, and nobody needs it without its parent."""
    end_with_parent(signal.SIGKILL, parent=parent)
    torch.set_num_threads(1)


def _members(shard: Path) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Yield (file name, media bytes, truth) of every record of a shard."""
    with tarfile.open(shard) as tar:
        media: tuple[str, bytes] | None = None
        for member in tar:
            stream = tar.extractfile(member)
            assert stream is not None, f"{shard}: {member.name} is no file"
            content = stream.read()
            if not member.name.endswith(".json"):
                media = (member.name, content)
            elif media is not None:
                yield (*media, json.loads(content)["truth"])
                media = None


def _decode(job: tuple[str, bytes, dict[str, Any], MediaLayout]) -> Known:
    name, content, truth, layout = job
    media = to_media(read_clip(content, name=name, layout=layout), layout=layout)
    return Known(script=script_from(truth), media=media)


@torch.no_grad()
def _fill_features(model: ArcVideoForConditionalGeneration, clips: Sequence[Known], *, root: Path | None) -> float:
    """Store the tower outputs of the clips, which the stages would otherwise decode again; returns how many."""
    if root is None:
        return 0.0
    model.requires_grad_(False)
    store = store_of(model, root=root)
    starts = range(0, len(clips), 16)
    for start in watched(starts, what="features", total=len(starts), unit="part"):
        model.embed_media([clip.media for clip in clips[start : start + 16]], features=store)
    return float(len(clips))


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when the weights are there, 2 when the arguments or the data are wrong."""
    parser = argparse.ArgumentParser(prog="python -m arcvideo.synthetic.base", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory of train-*.tar")
    parser.add_argument("--out", type=Path, required=True, help="directory for the weights")
    parser.add_argument("--model", type=Path, default=CONF_DIR / "model" / "tiny.yaml", help="sizes (%(default)s)")
    parser.add_argument("--features", type=Path, help="also store the clips' tower outputs here")
    parser.add_argument("--vision-steps", type=int, default=420)
    parser.add_argument("--audio-steps", type=int, default=260)
    parser.add_argument("--language-steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="decoding processes (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves torch's choice")
    options = parser.parse_args(words_from_home(arguments))
    try:
        for place in (options.out, options.features):
            if place is not None and not writable(place):
                raise ValueError(f"{place}: cannot be written; give another folder")
        with alone_filling(options.out):
            make_base(options)
    except (ValueError, OSError, SafetensorError) as error:
        print(f"error: {error_line(error, folder=options.out)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    as_command(main)
