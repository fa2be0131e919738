"""`make bench-grpo`: what sharing the prompt of a group saves.

1. Log-probabilities and update of one group: one packed row (the prompt once, G branches) against G full copies of the
   prompt, through the same model and kernels. The copies are tried as one batch and one by one; the faster counts.
2. A whole GRPO step (encode, prefill, sample, old and reference log-probabilities, rewards, update) against TRL's
   GRPOTrainer with the very same model, weights, prompts, tokens and rewards (`benchmarks/grpo_trl.py`).

`bound` is the ratio of the floating-point operations of both sides (`arcvideo/flops.py`).
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from arcvideo.flops import Segment, decoder_flops
from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.settings import AudioSettings, ModelSettings, TextSettings, VisionSettings
from arcvideo.objectives.grpo import Grpo
from arcvideo.objectives.scores import forward_of, loss_of
from arcvideo.objectives.settings import GrpoSettings
from arcvideo.rollout.rows import forward_logprobs
from arcvideo.types import Batch, Segments
from benchmarks.grpo_trl import step_rows
from benchmarks.table import Row, interleaved, median_ratio, ratio_spread, report

PROMPT, COMPLETION, ROUNDS = 2048, 64, 3
GROUPS = {8: 5.0, 16: 8.0}
"""G -> least ratio."""
PROMPTS, COMPLETIONS = (600, 2_000, 17_000), (64, 256, 1024)
"""Whose bounds are computed."""
MEASURED = ((600, 64), (600, 256), (600, 1024), (2_000, 256))
"""Of these what a CPU runs in minutes, G=8; the least ratio is half of the bound."""
TEXT = TextSettings(
    vocab_size=1024, hidden_size=256, intermediate_size=704, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=4, attention_head_dim=32, rope_alpha=1.0,
)  # fmt: skip
SETTINGS = GrpoSettings(beta=0.0)


def decoder(text: TextSettings = TEXT) -> ArcVideoForConditionalGeneration:
    """A model whose decoder counts and whose towers are never run."""
    torch.manual_seed(0)
    vision = VisionSettings(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        force_image_size=128, max_image_size=128,
    )  # fmt: skip
    audio = AudioSettings(d_model=16, encoder_layers=1, encoder_attention_heads=1, encoder_ffn_dim=16)
    model = ArcVideoForConditionalGeneration(
        ArcVideoConfig.from_settings(ModelSettings(text=text, vision=vision, audio=audio, audio_pooling=10))
    )
    model.requires_grad_(False)
    model.language_model.requires_grad_(True)
    return model.train()


@dataclass(frozen=True, kw_only=True)
class Sides:
    """One group, laid out in two ways."""

    shared: Batch
    """One packed row: the prompt, then G branches."""
    copies: Batch
    """G segments of prompt and completion without parents: a batch of full copies in one call."""
    single: list[Batch]
    """The same, a row each."""


def _row(
    ids: Tensor, *, starts: list[int], parents: list[int], positions: Tensor, predicts: Tensor, completion: int
) -> Batch:
    """A batch whose targets are the completions, (G * C,) in order; `predicts` are the positions before them."""
    count = len(predicts)
    samples = torch.arange(count // completion).repeat_interleave(completion)
    return Batch(
        input_ids=ids,
        position_ids=positions.expand(4, -1),
        segments=Segments(starts=torch.tensor(starts), parents=torch.tensor(parents)),
        media=(),
        target_positions=predicts,
        target_ids=torch.zeros(count, dtype=torch.int64),
        target_weights=torch.full((count,), 1.0 / completion),
        target_samples=samples,
        keys=tuple(f"s{i}" for i in range(count // completion)),
        tasks=("mcq",) * (count // completion),
    )


def lay_out(generations: int, *, prompt: int = PROMPT, completion: int = COMPLETION) -> Sides:
    """Random tokens as a shared row and as copies."""
    generator = torch.Generator().manual_seed(0)
    question = torch.randint(10, 900, (prompt,), generator=generator)
    answers = torch.randint(10, 900, (generations, completion), generator=generator)
    advantages = torch.randn(generations, generator=generator)
    whole = prompt + completion
    tail = torch.arange(prompt, whole)
    branch = torch.arange(completion - 1)
    begins = [prompt + completion * g for g in range(generations)]
    shared = _row(
        torch.cat([question, answers.flatten()]),
        starts=[0, *begins, prompt + completion * generations],
        parents=[-1] + [0] * generations,
        positions=torch.cat([torch.arange(prompt), tail.repeat(generations)]),
        predicts=torch.cat([torch.cat([torch.tensor([prompt - 1]), begin + branch]) for begin in begins]),
        completion=completion,
    )
    own = torch.arange(prompt - 1, whole - 1)
    rows = [torch.cat([question, answer]) for answer in answers]
    copies = _row(
        torch.cat(rows),
        starts=[whole * g for g in range(generations + 1)],
        parents=[-1] * generations,
        positions=torch.arange(whole).repeat(generations),
        predicts=torch.cat([whole * g + own for g in range(generations)]),
        completion=completion,
    )
    alone = {"starts": [0, whole], "parents": [-1], "positions": torch.arange(whole), "predicts": own}
    single = [_row(row, **alone, completion=completion) for row in rows]  # type: ignore[arg-type]
    for batch, answer, gain in [
        (shared, answers, advantages), (copies, answers, advantages),
        *((row, answers[i : i + 1], advantages[i : i + 1]) for i, row in enumerate(single)),
    ]:  # fmt: skip
        batch.target_ids.copy_(answer.flatten())
        batch.extra["advantages"] = gain  # type: ignore[index]
    return Sides(shared=shared, copies=copies, single=single)


def logprobs_of(model: ArcVideoForConditionalGeneration, batch: Batch) -> Tensor:
    """Log-probabilities of the targets, without a graph."""
    with torch.no_grad():
        return forward_logprobs(model, batch, temperature=1.0).to(batch.target_ids.device)


def one_update(model: ArcVideoForConditionalGeneration, batches: list[Batch]) -> Tensor:
    """Log-probabilities of the old policy, then forward, loss and backward; returns the log-probabilities."""
    objective, found = Grpo(SETTINGS), []
    for batch in batches:
        old = logprobs_of(model, batch)
        batch.extra["old_logprobs"] = old  # type: ignore[index]
        loss_of(objective, batch, run=forward_of(model)).total.backward()
        found.append(old)
    return torch.cat(found)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What one pass over every layout showed; it also warms up."""

    equal: bool
    """Log-probabilities to 1e-4 nats and the whole gradient to 1e-5 of its norm, in fp32."""
    baseline: list[Batch]
    """The faster layout of the copies."""


def check(model: ArcVideoForConditionalGeneration, sides: Sides) -> Checked:
    """Compare the layouts, and time those of the copies once; it also warms up."""
    found = []
    for batches in ([sides.shared], [sides.copies], sides.single):
        model.zero_grad()
        began = time.perf_counter()
        logprobs = one_update(model, batches)
        took = time.perf_counter() - began
        gradient = torch.cat([p.grad.flatten().double() for p in model.language_model.model.parameters()])
        found.append((took, batches, logprobs, gradient))
    _, _, logprobs, gradient = found[0]
    equal = all(
        torch.allclose(other, logprobs, atol=1e-4) and float((theirs - gradient).norm() / gradient.norm()) < 1e-5
        for _, _, other, theirs in found[1:]
    )
    return Checked(equal=equal, baseline=min(found[1:], key=lambda row: row[0])[1])


def flop_bound(
    generations: int, *, prompt: int = PROMPT, completion: int = COMPLETION, text: TextSettings = TEXT
) -> float:
    """Ratio of the decoder's operations: G full copies over one shared row."""
    targets = generations * completion
    copies = decoder_flops(text, [Segment(length=prompt + completion)] * generations, targets=targets)
    branches = [Segment(length=completion, prefix=prompt)] * generations
    shared = decoder_flops(text, [Segment(length=prompt), *branches], targets=targets)
    return copies.total / shared.total


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def update_row(
    generations: int, *, target: float, prompt: int = PROMPT, completion: int = COMPLETION, rounds: int = ROUNDS
) -> Row:
    """One group on both sides in turn."""
    model, sides = decoder(), lay_out(generations, prompt=prompt, completion=completion)
    checked = check(model, sides)
    found = interleaved(
        {
            "shared": lambda: seconds(lambda: one_update(model, [sides.shared])),
            "copies": lambda: seconds(lambda: one_update(model, checked.baseline)),
        },
        rounds=rounds,
        warm_up=0,
    )
    return Row(
        metric=f"log-probs + update, P={prompt} C={completion} G={generations}, s",
        ours=statistics.median(found["shared"]),
        baseline=statistics.median(found["copies"]),
        ratio=median_ratio(found["shared"], found["copies"]),
        target=target,
        bound=flop_bound(generations, prompt=prompt, completion=completion),
        equal=checked.equal,
        spread=ratio_spread(found["shared"], found["copies"]),
    )


def bound_notes() -> list[str]:
    """What the operations allow at the released widths, for prompts and completions that a CPU cannot run."""
    text = TextSettings()
    rows = []
    for prompt in PROMPTS:
        bounds = [f"C={c} {flop_bound(8, prompt=prompt, completion=c, text=text):.2f}" for c in COMPLETIONS]
        rows.append(f"P={prompt} {', '.join(bounds)}")
    return [
        "bound of log-probs and update by operations at the released widths, G=8 (computed, not measured): "
        + "; ".join(rows),
        "a ratio may exceed the bound, which counts operations: the copies also move more memory",
        "not shown: rollouts, which a long completion makes the larger part of a step; kernels of a GPU; several ranks",
    ]


def main() -> int:
    torch.set_num_threads(2)
    rows, notes = step_rows()
    notes = [
        "two CPU threads, fp32; the copies go through the same kernels, in one batch or one by one: the faster counts",
        *notes,
        *bound_notes(),
    ]
    for group, target in GROUPS.items():
        rows.append(update_row(group, target=target))
        status = report("grpo", rows, notes=notes)  # after each: the largest group takes minutes on a busy machine
    for prompt, completion in MEASURED:
        target = flop_bound(8, prompt=prompt, completion=completion) / 2
        rows.append(update_row(8, target=target, prompt=prompt, completion=completion))
        status = report("grpo", rows, notes=notes)
    return status


if __name__ == "__main__":
    sys.exit(main())
