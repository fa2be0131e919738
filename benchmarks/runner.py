"""`make bench-runner`: the cost of the loop over a bare PyTorch loop, packing against padding, saving beside the loop.

Loop: the same text batches through a bare PyTorch loop, through our Runner (ZeRO 0) and through transformers' Trainer;
a step's time is the CPU time of the process from one request for data to the next, so neither set-up nor the last
checkpoint nor other processes count.
Packing: the length mix of short-video training (55 % videos with lognormal lengths around 35 s, 20 % images, 25 % text)
scaled to the tiny model; 16 samples an optimizer step, in rows of 2,048 tokens or padded in batches of 4.
Saving: how long the loop stands still for a checkpoint, against waiting until the same state is on disk.
All sides start from equal weights and must have the same loss curve. TODO: unmeasured on CUDA.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.settings import AudioSettings, ModelSettings, TextSettings, VisionSettings
from arcvideo.model.special import SpecialIds
from arcvideo.objectives.next_token import NextToken
from arcvideo.planning.pack import best_fit
from arcvideo.processes.ranks import join
from arcvideo.runner.engine import Engine
from arcvideo.runner.runner import Runner
from arcvideo.runner.saving import Saver
from arcvideo.runner.settings import OptimizerSettings, RunnerSettings, ScheduleSettings
from arcvideo.runner.trainable import train_only
from arcvideo.saving.checkpoint import CheckpointFolder
from arcvideo.tracking.metrics import read_metrics
from arcvideo.types import Batch, Segments, StepData, model_inputs
from benchmarks.table import Row, interleaved, report

SPECIAL = SpecialIds(
    start=500, end=501, eos=502, sep=503, pad=504, img_open=505, img_close=506, newline=507, image=508, vid_open=509,
    vid_close=510,
)  # fmt: skip
SETTINGS = ModelSettings(
    text=TextSettings(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, attention_head_dim=32, rope_alpha=1.0,
    ),
    vision=VisionSettings(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, max_image_size=128,
        force_image_size=128,
    ),
    audio=AudioSettings(
        d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32, num_mel_bins=8,
        max_source_positions=100,
    ),
    audio_pooling=10,
)  # fmt: skip
LR = 1e-3
STEPS = 50
WARM = 10
"""Steps of a run that are not timed."""
TOKENS = 64
SAMPLES = 16
PADDED = 4
ROW = 2048
SCALE = 16
"""Lengths of the 7B's mix are divided by this."""
MIX_STEPS = 4
BUDGET_MS = 2.0
TOLERANCE = 1e-4


def fresh() -> ArcVideoForConditionalGeneration:
    """The tiny model, the decoder learning."""
    torch.manual_seed(0)
    model = ArcVideoForConditionalGeneration(ArcVideoConfig.from_settings(SETTINGS, special=SPECIAL))
    train_only(model, ["llm"])
    return model


def row_of(samples: Sequence[Tensor]) -> Batch:
    """A packed row of samples, each supervised everywhere."""
    lengths = [len(sample) for sample in samples]
    starts = np.cumsum([0, *lengths])
    places = torch.cat([torch.arange(first, last - 1) for first, last in pairwise(starts)])
    ids = torch.cat(list(samples))
    return Batch(
        input_ids=ids,
        position_ids=torch.cat([torch.arange(length) for length in lengths]).expand(4, -1),
        segments=Segments(
            starts=torch.tensor(starts, dtype=torch.int32), parents=torch.full((len(samples),), -1, dtype=torch.int32)
        ),
        media=(),
        target_positions=places,
        target_ids=ids[places + 1],
        target_weights=torch.ones(len(places)),
        target_samples=torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(lengths) - 1),
        keys=tuple(f"sample-{number}" for number in range(len(samples))),
        tasks=("qa",) * len(samples),
    )


class Steps:
    """Made batches as a source; notes when each step was asked for."""

    def __init__(self, steps: Sequence[Sequence[Batch]]) -> None:
        self.steps = steps
        self.times: list[float] = []

    def batches(self, step: int) -> StepData:
        """Those of the step."""
        self.times.append(time.process_time())
        return StepData(batches=list(self.steps[step]))


def with_runner(steps: Sequence[Sequence[Batch]]) -> tuple[list[float], list[float]]:
    """(losses, times of requests) of our loop."""
    source = Steps(steps)
    engine = Engine(
        fresh(), world=join(), settings={}, clip_norm=1.0, optimizer=OptimizerSettings(lr=LR, weight_decay=0.0)
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        Path(os.devnull).open("w") as quiet,
        contextlib.redirect_stderr(quiet),
    ):
        runner = Runner(
            engine=engine, source=source, objective=NextToken(), train=["llm"], folder=Path(folder), identity="bench",
            settings=RunnerSettings(steps=len(steps), save_every=0, liveness=False, log_every=10),
            schedule=ScheduleSettings(name="constant"),
        )  # fmt: skip
        runner.run()
        losses = [line["train/loss"] for line in read_metrics(Path(folder) / "metrics.jsonl")]
    torch.use_deterministic_algorithms(False)
    return losses, source.times


def bare(steps: Sequence[Sequence[Batch]]) -> tuple[list[float], list[float]]:
    """(losses, times) of the loop one would write by hand."""
    model = fresh()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    losses, times = [], []
    for batches in steps:
        times.append(time.process_time())
        weight, total = sum(len(batch.target_ids) for batch in batches), 0.0
        for batch in batches:
            loss = F.cross_entropy(model(**model_inputs(batch)).logits, batch.target_ids, reduction="sum") / weight
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses, times


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.times.append(time.process_time())


class _Peer(Trainer):
    """transformers' Trainer over batches that are made already."""

    loss_of: Callable[[nn.Module, Any, Any], Tensor]

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_dataset, batch_size=None, shuffle=False)  # type: ignore[arg-type]

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        return type(self).loss_of(model, inputs, num_items_in_batch)

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs


def with_trainer(
    batches: Sequence[Any], *, loss_of: Callable[[nn.Module, Any, Any], Tensor], accumulate: int, log_every: int
) -> tuple[list[float], list[float]]:
    """(logged losses, times) of transformers' Trainer."""
    clock = _Clock()
    # With our variables in the environment it would believe in several ranks and wrap the model.
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        arguments = TrainingArguments(
            output_dir=folder, max_steps=len(batches) // accumulate, gradient_accumulation_steps=accumulate,
            learning_rate=LR, lr_scheduler_type="constant", weight_decay=0.0, adam_beta2=0.95, max_grad_norm=1.0,
            optim="adamw_torch_fused", logging_steps=log_every, save_strategy="no", report_to=[], use_cpu=True,
            remove_unused_columns=False, disable_tqdm=True, dataloader_num_workers=0,
        )  # fmt: skip
        peer = type("Peer", (_Peer,), {"loss_of": staticmethod(loss_of)})
        trainer = peer(model=fresh(), args=arguments, train_dataset=list(batches), callbacks=[clock])
        # Otherwise it averages the means of micro-batches of different sizes.
        trainer.model_accepts_loss_kwargs = True
        trainer.train()
        assert not isinstance(trainer.model_wrapped, nn.parallel.DistributedDataParallel)
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return losses, clock.times


def _row_loss(model: nn.Module, inputs: dict[str, Batch], _: Any) -> Tensor:
    batch = inputs["row"]
    return F.cross_entropy(model(**model_inputs(batch)).logits, batch.target_ids)


def _padded_loss(model: nn.Module, batch: dict[str, Tensor], items: Any) -> Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100, reduction="sum"
    ) / int(items)


# --- the loop ---


def loop_rows() -> list[Row]:
    """Overhead of a step over the bare loop, alone and against the Trainer's."""
    generator = torch.Generator().manual_seed(0)
    batches = [row_of([torch.randint(0, 500, (TOKENS,), generator=generator)]) for _ in range(STEPS)]
    steps, wrapped = [[batch] for batch in batches], [{"row": batch} for batch in batches]
    expected, _ = bare(steps)
    theirs, _ = with_trainer(wrapped, loss_of=_row_loss, accumulate=1, log_every=1)
    ours, _ = with_runner(steps)
    same = np.allclose(expected, ours, rtol=TOLERANCE) and np.allclose(expected, theirs, atol=TOLERANCE)
    sides = {
        "bare": lambda: _ms(bare(steps)[1]),
        "runner": lambda: _ms(with_runner(steps)[1]),
        "trainer": lambda: _ms(with_trainer(wrapped, loss_of=_row_loss, accumulate=1, log_every=10)[1]),
    }
    found = interleaved(sides, rounds=3, warm_up=0)
    ours_over, theirs_over = (
        float(statistics.median(side - base for side, base in zip(found[name], found["bare"], strict=True)))
        for name in ("runner", "trainer")
    )
    return [
        Row(metric=f"loop: ms a step over a bare loop ({statistics.median(found['bare']):.1f} ms), budget {BUDGET_MS}",
            ours=ours_over, baseline=None, ratio=BUDGET_MS / max(ours_over, 1e-3), target=1.0, equal=bool(same)),
        Row(metric="loop: the same against transformers' Trainer", ours=ours_over, baseline=theirs_over,
            ratio=theirs_over / max(ours_over, 1e-3), target=2.0, equal=bool(same)),
    ]  # fmt: skip


def _ms(times: Sequence[float]) -> float:
    # The lower quartile: what neighbours on the machine add to a step is never negative.
    return float(1000 * np.quantile(np.diff(times[WARM:]), 0.25))


# --- packing ---


def mix(generator: np.random.Generator) -> list[Tensor]:
    """Samples of an optimizer step, with the lengths of the 7B's mix scaled down."""
    kinds = generator.random(SAMPLES)
    seconds = np.minimum(generator.lognormal(np.log(35), 0.7, SAMPLES), 150)
    text = generator.lognormal(np.log(300), 0.6, SAMPLES)
    media = np.where(kinds < 0.55, 114 * seconds, np.where(kinds < 0.75, 114, 0))
    lengths = np.maximum((media + text) / SCALE, 8).astype(int)
    return [torch.tensor(generator.integers(0, 500, length)) for length in lengths]


def padded(samples: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """The samples in batches of four, padded on the right."""
    batches = []
    for start in range(0, len(samples), PADDED):
        group = samples[start : start + PADDED]
        ids = nn.utils.rnn.pad_sequence(list(group), batch_first=True, padding_value=SPECIAL.pad)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(sample) for sample in group], batch_first=True)
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, 0] = -100  # nothing predicts a first token; the Trainer would count it
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return batches


def packing_row() -> Row:
    """Real tokens a second, packed in our loop against padded in transformers' Trainer."""
    generator = np.random.default_rng(0)
    steps = [mix(generator) for _ in range(MIX_STEPS)]
    rows = []
    for samples in steps:
        packs = best_fit(np.array([len(sample) for sample in samples]), budget=ROW)
        rows.append([row_of([samples[number] for number in pack]) for pack in packs])
    batches = [batch for samples in steps for batch in padded(samples)]
    each = len(batches) // MIX_STEPS
    train = partial(with_trainer, batches, loss_of=_padded_loss, accumulate=each, log_every=1)
    ours, theirs = with_runner(rows)[0], train()[0]
    same = np.allclose(ours, theirs, atol=10 * TOLERANCE)
    tokens = [sum(len(sample) for sample in samples) for samples in steps]

    def speed(times: Sequence[float]) -> float:
        """Real tokens a second of the steps but the first; the last step's end is not known."""
        return sum(tokens[1:-1]) / (times[-1] - times[1])

    found = interleaved(
        {"packed": lambda: speed(with_runner(rows)[1]), "padded": lambda: speed(train()[1])}, rounds=2, warm_up=0
    )
    packed_speed, padded_speed = statistics.median(found["packed"]), statistics.median(found["padded"])
    slots = sum(batch["input_ids"].numel() for batch in batches) / sum(tokens)
    ratio = statistics.median(here / there for here, there in zip(found["packed"], found["padded"], strict=True))
    return Row(metric=f"packing: training tokens/s, packed against Trainer padded by 4 ({slots:.2f} slots a token)",
               ours=packed_speed, baseline=padded_speed, ratio=ratio, target=2.0, equal=bool(same))  # fmt: skip


# --- saving ---


def saving_row() -> Row:
    """Seconds the loop stands still for a checkpoint, against writing the same state before going on."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"language_model": nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(12)))})
    engine = Engine(_Callable(model), world=join(), settings={}, optimizer=OptimizerSettings())
    engine.backward(engine(x=torch.ones(1, 1024)).sum(), last=True)
    engine.step()
    nothing: Callable[[str], None] = lambda text: None  # noqa: E731
    with tempfile.TemporaryDirectory(dir=".") as folder:
        saver = Saver(engine, folder=CheckpointFolder(Path(folder), keep_last=1, keep_every=0), identity="bench")
        step = iter(range(1, 1000))

        def beside() -> float:
            began = time.perf_counter()
            saver.save(next(step), state={}, say=nothing)
            stall = time.perf_counter() - began
            saver.settle(say=nothing)
            return stall

        def waiting() -> float:
            began = time.perf_counter()
            saver.save(next(step), state={}, say=nothing)
            saver.settle(say=nothing)
            return time.perf_counter() - began

        found = interleaved({"beside": beside, "waiting": waiting}, rounds=5)
        newest = CheckpointFolder(Path(folder), keep_last=1, keep_every=0).newest()
        assert newest is not None
        saved, live = newest.tensors("weights"), dict(engine.weights())
        same = saved.keys() == live.keys() and all(torch.equal(saved[name], live[name]) for name in live)
    stall, whole = statistics.median(found["beside"]), statistics.median(found["waiting"])
    size = 3 * sum(tensor.nbytes for tensor in live.values()) / 1e6
    return Row(metric=f"saving: s the loop stands still for {size:.0f} MB, against a synchronous save", ours=stall,
               baseline=whole, ratio=whole / stall, target=10.0, equal=same)  # fmt: skip


class _Output:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class _Callable(nn.Module):
    def __init__(self, parts: nn.ModuleDict) -> None:
        super().__init__()
        self.language_model = parts["language_model"]

    def forward(self, x: Tensor) -> _Output:
        return _Output(self.language_model(x))


def main() -> int:
    """Measure all, print the table, write the results."""
    torch.set_num_threads(1)
    rows = [*loop_rows(), packing_row(), saving_row()]
    return report(
        "runner",
        rows,
        notes=[
            f"loop: {STEPS} steps of one row of {TOKENS} tokens, the first {WARM} not timed; CPU time of the "
            "process, lower quartile of a run, median of 3 rounds of the difference to the bare loop; "
            "Trainer logs every 10 steps, we write every step",
            f"packing: {SAMPLES} samples a step, token ids only; slots a token: size of the padded batches",
            "saving: fp32 weights and both AdamW states, sha256 and fsync included; on the disk of the working folder",
            "one thread; equal: loss curves of all sides (loop, packing), bits read back (saving)",
        ],
    )


if __name__ == "__main__":
    raise SystemExit(main())
