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
from arcvideo.preflight.trace import trace_row
from arcvideo.preflight.trace_rollout import trace_rollout
from benchmarks.table import Row, report

GIB = 1 << 30
WITHIN = 0.9
"""Least agreement of formula and trace."""
CLIP = 150 * 112
"""Tokens of a clip of full length, between the start and its text."""
FULL_CLIP = Shape(frames=150, text=20480 - 1 - CLIP, branches=(), targets=2048)
BRANCHES = Shape(frames=150, text=300, branches=(844,) * 4, targets=2048)
TARGETS = Shape(frames=40, text=20480 - 1 - 40 * 112, branches=(), targets=8000)
LONG = Shape(frames=206, text=291, branches=(), targets=290)
GROUP = Shape(frames=150, text=256, branches=(1024,) * 8, targets=8192)
PAIR = Shape(frames=150, text=256, branches=(400, 400), targets=800)
TEXT = Shape(frames=0, text=8192, branches=(), targets=800)
NONE, SELECTIVE, FULL = (f"model.activation_checkpointing={how}" for how in ("none", "selective", "full"))
PROJECTORS = "vision_projector,audio_projector"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row of a stage."""

    words: tuple[str, ...]
    shape: Shape
    model: str = "arc_hunyuan_7b"

    def config(self, *, layers: int = 0) -> RunConfig:
        """Its settings, at most so many layers deep in decoder and towers; 0 for all."""
        config = stage_config([*self.words, f"model={self.model}", "data.sources.mine.shards=x.tar"])
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
    "qwen 7B sft, 206 frames, full": Case(words=("stage=sft", FULL), shape=LONG, model="arc_qwen_7b"),
    "qwen 7B sft, 206 frames, selective": Case(words=("stage=sft", SELECTIVE), shape=LONG, model="arc_qwen_7b"),
    "qwen 7B grpo, 8 x 1024, full": Case(words=("stage=grpo", FULL), shape=GROUP, model="arc_qwen_7b"),
    "qwen 3B sft, 206 frames, full": Case(words=("stage=sft", FULL), shape=LONG, model="arc_qwen_3b"),
    "qwen 3B lora, none": Case(words=("stage=sft", NONE, "lora.rank=64"), shape=LONG, model="arc_qwen_3b"),
    "hunyuan 1B sft, 150 frames, none": Case(words=("stage=sft", NONE), shape=FULL_CLIP, model="arc_hunyuan_1b"),
    "hunyuan 1B grpo, 8 x 1024, full": Case(words=("stage=grpo", FULL), shape=GROUP, model="arc_hunyuan_1b"),
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


@dataclass(frozen=True, kw_only=True)
class RolloutCase:
    """A rollout of a rank at the group's shape."""

    model: str
    prompts: int
    words: tuple[str, ...] = ()

    def config(self, *, layers: int = 0) -> RunConfig:
        """Its settings, at most so many layers deep; 0 for all."""
        words = ("stage=grpo", f"model={self.model}", f"grpo.num_prompts={self.prompts}", "engine=zero2", *self.words)
        config = stage_config([*words, "runner.precision=bf16", "data.sources.mine.shards=x.tar"])
        return shallow(config, layers=layers) if layers else config


SHORT = ("grpo.max_completion_length=2", "grpo.num_generations=2")
ROLLOUTS: Mapping[str, RolloutCase] = {
    "rollout, 1 x 17k": RolloutCase(model="arc_hunyuan_7b", prompts=1),
    "rollout, 8 x 17k": RolloutCase(model="arc_hunyuan_7b", prompts=8),
    "rollout, prefill alone of 8 x 17k": RolloutCase(model="arc_hunyuan_7b", prompts=8, words=SHORT),
    "rollout, 8 x 17k, qwen 7B": RolloutCase(model="arc_qwen_7b", prompts=8),
    "rollout, 4 x 17k, hunyuan 1B": RolloutCase(model="arc_hunyuan_1b", prompts=4),
}
"""Name -> what is compared."""


def compared_rollout(case: RolloutCase, *, layers: int = 0) -> tuple[float, float]:
    """GiB above the weights of a rank's rollout by the formula, and by tracing."""
    config = case.config(layers=layers)
    grpo = config.grpo
    answers = (grpo.max_completion_length,) * grpo.num_generations
    row = replace(GROUP, branches=answers, targets=sum(answers))
    formula = memory(config, ranks=1, row=row)
    return (formula.rollout + formula.features) / GIB, trace_rollout(config, row=row, prompts=case.prompts).peak / GIB


def main() -> int:
    """Trace every case and write the results."""
    logging.disable(logging.WARNING)
    rows = []
    for name, rolled in ROLLOUTS.items():
        formula, traced = compared_rollout(rolled)
        ratio = min(formula / traced, traced / formula)
        rows.append(Row(metric=f"{name}, GiB", ours=formula, baseline=traced, ratio=ratio, target=WITHIN))
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
