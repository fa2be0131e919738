"""Figures of prompts that are in memory: asked and scored as a stage does it, without shards, ranks or folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arcvideo.evaluation.bootstrap import Metric
from arcvideo.evaluation.evaluate import ask_all
from arcvideo.evaluation.figures import arms_of, check_chosen, choose, figures
from arcvideo.evaluation.predictions import write_predictions
from arcvideo.evaluation.settings import EvaluationSettings
from arcvideo.feed.prompts import Prompt
from arcvideo.sampling.sampler import InProcessSampler


def evaluate(
    model: Any,
    prompts: Sequence[Prompt],
    *,
    tokenizer: Any,
    settings: EvaluationSettings,
    chosen: Mapping[str, Sequence[str]] | None = None,
    output: Path | None = None,
) -> dict[str, Metric]:
    outlines = [prompt.outline for prompt in prompts]
    if chosen is None:
        chosen = choose(outlines, settings=settings)
    check_chosen(chosen, questions=outlines, settings=settings)
    asking = ask_all(
        iter(prompts),
        sampler=InProcessSampler(model, tokenizer=tokenizer),
        wanted=arms_of(chosen),
        numbers={prompt.key: number for number, prompt in enumerate(prompts)},
        settings=settings,
    )
    answers = {(answer.arm, answer.key): answer for part in asking for answer in part}
    found, predictions = figures(answers, chosen=chosen, settings=settings)
    if output is not None:
        write_predictions(output, predictions=predictions)
    return found
