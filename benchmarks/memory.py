"""Memory of one row of the 7B above its weights: preflight's formula beside a trace of the model at full shapes.

Nothing is computed and no weights are needed; a row takes seconds to a minute. On a GPU neither is measured yet.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from arcvideo.composing.compose import stage_config
from arcvideo.composing.config import RunConfig
from arcvideo.preflight.activations import activations
from arcvideo.preflight.memory import memory
from arcvideo.preflight.row import Row as Shape
from arcvideo.preflight.trace import trace_prefill, trace_row
from benchmarks.table import Row, report

GIB = 1 << 30
WITHIN = 0.9
"""Least agreement of formula and trace."""
CLIP = 150 * 112
"""Tokens of a clip of full length, between the start and its text."""
FULL_CLIP = Shape(frames=150, text=20480 - 1 - CLIP, branches=(), targets=2048)
BRANCHES = Shape(frames=150, text=300, branches=(844,) * 4, targets=2048)
TARGETS = Shape(frames=40, text=20480 - 1 - 40 * 112, branches=(), targets=8000)
GROUP = Shape(frames=150, text=256, branches=(1024,) * 8, targets=8192)
PAIR = Shape(frames=150, text=256, branches=(400, 400), targets=800)
PROMPT = Shape(frames=150, text=256, branches=(1, 1), targets=2)
TEXT = Shape(frames=0, text=8192, branches=(), targets=800)
NONE, SELECTIVE, FULL = (f"model.activation_checkpointing={how}" for how in ("none", "selective", "full"))
PROJECTORS = "vision_projector,audio_projector"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row of a stage."""

    words: tuple[str, ...]
    shape: Shape

    def config(self, *, layers: int = 0) -> RunConfig:
        """Its settings, at most so many layers deep in decoder and towers; 0 for all."""
        config = stage_config([*self.words, "model=arc_hunyuan_7b", "data.sources.mine.shards=x.tar"])
        return shallow(config, layers=layers) if layers else config


CASES: Mapping[str, Case] = {
    "sft, 150 frames, full": Case(words=("stage=sft", FULL), shape=FULL_CLIP),
    "sft, 150 frames, selective": Case(words=("stage=sft", SELECTIVE), shape=FULL_CLIP),
    "sft, 150 frames, none": Case(words=("stage=sft", NONE), shape=FULL_CLIP),
    "sft, fp32, full": Case(words=("stage=sft", FULL, "runner.precision=fp32"), shape=FULL_CLIP),
    "sft, four branches, full": Case(words=("stage=sft", FULL), shape=BRANCHES),
    "sft, four branches, none": Case(words=("stage=sft", NONE), shape=BRANCHES),
    "sft, 8000 targets, full": Case(words=("stage=sft", FULL), shape=TARGETS),
    "sft, text alone, full": Case(words=("stage=sft", FULL), shape=TEXT),
    "grpo, 8 x 1024, full": Case(words=("stage=grpo", FULL), shape=GROUP),
    "grpo, 8 x 1024, selective": Case(words=("stage=grpo", SELECTIVE), shape=GROUP),
    "dpo, full": Case(words=("stage=dpo", FULL), shape=PAIR),
    "lora, full": Case(words=("stage=sft", FULL, "lora.rank=64"), shape=FULL_CLIP),
    "lora, selective": Case(words=("stage=sft", SELECTIVE, "lora.rank=64"), shape=FULL_CLIP),
    "lora, none": Case(words=("stage=sft", NONE, "lora.rank=64"), shape=FULL_CLIP),
    "projectors alone, full": Case(words=("stage=sft", FULL, f"stage.train=[{PROJECTORS}]"), shape=FULL_CLIP),
    "vision tower too, full": Case(words=("stage=sft", FULL, f"stage.train=[{PROJECTORS},llm,vit]"), shape=FULL_CLIP),
    "vision tower too, none": Case(words=("stage=sft", NONE, f"stage.train=[{PROJECTORS},llm,vit]"), shape=FULL_CLIP),
    "both towers too, full": Case(
        words=("stage=sft", FULL, f"stage.train=[{PROJECTORS},llm,vit,whisper]"), shape=FULL_CLIP
    ),
}
"""Name -> what is compared."""


def shallow(config: RunConfig, *, layers: int) -> RunConfig:
    """The settings with at most so many layers in decoder and towers; widths stay."""
    model = config.model
    model = replace(
        model,
        text=replace(model.text, num_hidden_layers=layers),
        vision=replace(model.vision, num_hidden_layers=min(layers, 2)),
        audio=replace(model.audio, encoder_layers=min(layers, 2)),
    )
    return replace(config, model=model)


def compared(case: Case, *, layers: int = 0) -> tuple[float, float]:
    """GiB above the weights by the formula, and by tracing."""
    config = case.config(layers=layers)
    return activations(config, row=case.shape).peak / GIB, trace_row(config, row=case.shape).peak / GIB


def compared_prefill(prompts: int, *, layers: int = 0) -> tuple[float, float]:
    """GiB above the weights while prompts of full length are prefilled: by the formula, and by tracing.

    The formula's is that of a rollout whose completions are one token long.
    """
    words = ("stage=grpo", f"grpo.num_prompts={prompts}", "grpo.max_completion_length=1", "engine=zero2")
    config = Case(words=(*words, "grpo.num_generations=2", "runner.precision=bf16"), shape=PROMPT).config(layers=layers)
    formula = memory(config, ranks=1, row=PROMPT).rollout
    return formula / GIB, trace_prefill(config, length=PROMPT.tokens(config) - 2, prompts=prompts) / GIB


def main() -> int:
    """Trace every case and write the results."""
    logging.disable(logging.WARNING)
    rows = []
    for prompts in (1, 8):
        formula, traced = compared_prefill(prompts)
        ratio = min(formula / traced, traced / formula)
        name = f"rollout, prefill of {prompts} x 17k, GiB"
        rows.append(Row(metric=name, ours=formula, baseline=traced, ratio=ratio, target=WITHIN))
    for name, case in CASES.items():
        formula, traced = compared(case)
        ratio = min(formula / traced, traced / formula)
        rows.append(Row(metric=f"{name}, GiB", ours=formula, baseline=traced, ratio=ratio, target=WITHIN))
    notes = [
        "ours: the formula of preflight; baseline: the trace (`python -m arcvideo.preflight.trace`); ratio: the "
        "smaller over the larger",
        "bytes above the weights at the peak of forward and backward of one row, gradients of weights left out; "
        "bf16 where nothing else is said; not yet measured on a GPU",
    ]
    return report("memory", rows, notes=notes)


if __name__ == "__main__":
    raise SystemExit(main())
