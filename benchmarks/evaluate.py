"""`make bench-evaluate`: a measurement against one question at a time through `model.generate`, on TinyShorts.

Both sides start at the bytes of the shards, ask the same questions of the same weights, and their answers are compared
before a figure counts. The baseline decodes, encodes and prefills the clip anew for each question, as a loop over
`processor` and `model.generate` does; ours decodes and encodes it once, prefills its frames once, and answers together.
Models are loaded beforehand on both sides.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from arcvideo.decoding.pool import MediaPool
from arcvideo.evaluation.answers import FULL
from arcvideo.measuring.answering.ours import Ours
from arcvideo.measuring.arms import OtherSounds
from arcvideo.measuring.questions import Asking, Question, open_questions
from arcvideo.measuring.read import Reader, read_ahead
from arcvideo.measuring.settings import EvaluateSettings
from arcvideo.media.clip import read_clip
from arcvideo.sampling.sampler import banned_ids, stop_ids
from benchmarks.table import Row, interleaved, median_ratio, ratio_spread, report

TARGET = 4.0
PARTS = ("read", "encode", "prefill", "decode")
"""What a measurement spends its time on; reading (decoding of media) goes on beside the rest."""
TOLD = {"read": "media decoded", "encode": "towers", "prefill": "prefill", "decode": "tokens decoded"}


@dataclass(kw_only=True)
class Said:
    """Answers of one side, and where its time went."""

    texts: dict[str, str]
    seconds: dict[str, float]


def world(out: Path, *, clips: int) -> tuple[Path, str]:
    """Write TinyShorts and hardly trained base weights; return the weights and the held-out shards."""
    from arcvideo.synthetic.base import main
    from arcvideo.synthetic.settings import TinyShortsSettings
    from arcvideo.synthetic.write import write_dataset

    data, base = out / "data", out / "base"
    write_dataset(data, settings=TinyShortsSettings(clips=16, test_clips=clips, texts=8, seed=1), workers=1)
    steps = ["--vision-steps=3", "--audio-steps=3", "--language-steps=3", "--workers=1", "--threads=1"]
    if main([f"--data={data}", f"--out={base}", f"--features={out / 'features'}", *steps]):
        raise SystemExit("no base weights")
    return base, f"{data}/test-*.tar"


def together(model: Ours, *, asking: Asking, pool: MediaPool) -> Said:
    """Ask as `arcvideo evaluate` does."""
    reader = Reader(read_clip=pool.read_clip, layout=model.layout, font=None, arms=[FULL])
    left = [(one, {question.key: (FULL,) for question in one.questions}) for one in asking.materials]
    said = Said(texts={}, seconds=dict.fromkeys((*PARTS, "video"), 0.0))

    def noted() -> Any:
        for read in read_ahead(left, reader=reader, others=OtherSounds(asking.materials, hear=reader.sound), workers=1):
            said.seconds["read"] += read.seconds
            yield read

    for answers, seconds in model.ask(noted()):
        said.texts |= {answer.key: answer.text for answer in answers}
        for name, value in seconds.items():
            said.seconds[name] += value
    return said


@torch.inference_mode()
def one_at_a_time(model: Ours, *, asking: Asking) -> Said:
    """Ask as a loop over questions does: read, process, generate."""
    said = Said(texts={}, seconds={})
    tokenizer = model.processor.tokenizer
    stop = stop_ids(tokenizer)
    banned = sorted(banned_ids(tokenizer, stop=stop))
    for material in asking.materials:
        for question in material.questions:
            media = None
            if material.read is not None:
                data, sound = material.read()
                clip = read_clip(data, name=material.name, layout=model.layout, sidecar_audio=sound)
                media = model.processor.media(clip)
            inputs = model.processor(_text(question), media=media, task="none")
            made = model.sampler.model.generate(
                **inputs, max_new_tokens=model.sampling.max_new_tokens, do_sample=False, eos_token_id=sorted(stop),
                suppress_tokens=banned,
            )  # fmt: skip
            ids = made[0, inputs["input_ids"].shape[1] :].tolist()
            said.texts[question.key] = tokenizer.decode(ids, skip_special_tokens=True)
    return said


def _text(question: Question) -> str:
    return question.sample.turns[0].question


def main(words: list[str] | None = None) -> int:
    """Measure, print the table, write results/evaluate.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluate", description=__doc__)
    parser.add_argument("--clips", type=int, default=6, help="held-out clips (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side (%(default)s)")
    parser.add_argument("--tokens", type=int, default=16, help="tokens an answer has at most (%(default)s)")
    parser.add_argument("--checkpoint", type=Path, help="weights; by default hardly trained ones are made")
    parser.add_argument("--data", default="", help="held-out shards of --checkpoint")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="arcvideo-evaluate-") as folder, MediaPool(count=1) as pool:
        base, data = (
            (options.checkpoint, options.data) if options.checkpoint else world(Path(folder), clips=options.clips)
        )
        settings = EvaluateSettings(
            checkpoint=str(base), data=data, style="plain", max_new_tokens=options.tokens, device="cpu"
        )
        model = Ours(settings, device=torch.device("cpu"))
        model.load()
        asking = open_questions(settings, style=model.style, progress=False)
        return _compare(model, asking=asking, pool=pool, rounds=options.rounds)


def _compare(model: Ours, *, asking: Asking, pool: MediaPool, rounds: int) -> int:
    load = os.getloadavg()[0]
    first = together(model, asking=asking, pool=pool)
    other = one_at_a_time(model, asking=asking)
    differing = sorted(key for key in other.texts if first.texts.get(key) != other.texts[key])
    spent: list[dict[str, float]] = []

    def ours() -> float:
        began = time.perf_counter()
        spent.append(together(model, asking=asking, pool=pool).seconds)
        return time.perf_counter() - began

    def baseline() -> float:
        began = time.perf_counter()
        one_at_a_time(model, asking=asking)
        return time.perf_counter() - began

    found = interleaved({"ours": ours, "baseline": baseline}, rounds=rounds)
    questions = sum(len(one.questions) for one in asking.materials)
    row = Row(
        metric=f"{questions} questions about {len(asking.materials)} clips, s",
        ours=statistics.median(found["ours"]),
        baseline=statistics.median(found["baseline"]),
        ratio=median_ratio(found["ours"], found["baseline"]),
        spread=ratio_spread(found["ours"], found["baseline"]),
        target=TARGET,
        equal=not differing and len(first.texts) == len(other.texts) == questions,
    )
    minutes = [{name: 60 * one[name] / one["video"] for name in PARTS} for one in spent[-rounds:]]
    split = ", ".join(f"{TOLD[name]} {statistics.median(one[name] for one in minutes):.2f}" for name in PARTS)
    notes = [
        f"answers compared first: {len(other.texts) - len(differing)} of {questions} are equal",
        f"seconds for a minute of video, all its questions and one process: {split}; media are decoded beside the rest",
        f"load of the machine when it began: {load:.1f} on {os.cpu_count()} cores; rounds alternate",
    ]
    return report("evaluate", [row], notes=notes)


if __name__ == "__main__":
    raise SystemExit(main())
