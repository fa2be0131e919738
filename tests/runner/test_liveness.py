"""A run that would train without its video, its sound or its gradients refuses to start."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from arcvideo.model.arc_hunyuan.head import Head
from arcvideo.objectives.next_token import NextToken
from arcvideo.processes.ranks import World
from arcvideo.runner import liveness
from arcvideo.runner.engine import Engine
from arcvideo.runner.liveness import DeadModality, check_modalities, permuted, zeroed
from arcvideo.runner.protocols import BatchSource, Objective, RunResult
from arcvideo.runner.runner import Runner
from arcvideo.runner.settings import OptimizerSettings, RunnerSettings, ScheduleSettings
from arcvideo.runner.trainable import frozen_hashes, train_only
from arcvideo.types import Batch, Media, StepData, model_inputs
from tests.runner.job import TRAIN
from tests.runner.real import packed, real_model
from tests.runner.tiny import Rows, Tiny, batch, clip, cross_entropy


def run(
    model: torch.nn.Module, folder: Path, *, world: World, source: BatchSource | None = None,
    train: list[str] | None = None, steps: int = 3, liveness_every: int = 0, objective: Objective = cross_entropy,
) -> RunResult:  # fmt: skip
    engine = Engine(model, world=world, settings={}, optimizer=OptimizerSettings(lr=1e-2))
    settings = RunnerSettings(steps=steps, log_every=1000, liveness_every=liveness_every)
    return Runner(
        engine=engine, source=source or Rows(), objective=objective, settings=settings,
        schedule=ScheduleSettings(), train=train or TRAIN, folder=folder, identity="tiny",
    ).run()  # fmt: skip


@pytest.mark.parametrize(("blind", "deaf", "name"), [(True, False, "video"), (False, True, "audio")])
def test_a_model_that_ignores_a_modality_is_refused_by_name(
    tmp_path: Path, world: World, blind: bool, deaf: bool, name: str
) -> None:
    model = Tiny(blind=blind, deaf=deaf)
    train_only(model, TRAIN)
    with pytest.raises(DeadModality, match=f"{name} is dead"):
        run(model, tmp_path, world=world)


class KeyLost(Tiny):
    """The mistake of the public trainer: the batch's media arrive under a key that the forward does not read."""

    def forward(self, **inputs):
        inputs["media"] = ()
        return super().forward(**inputs)


def test_batch_keys_that_the_model_does_not_read_stop_the_run(tmp_path: Path, world: World) -> None:
    model = KeyLost()
    train_only(model, TRAIN)
    with pytest.raises(DeadModality, match="does not read what the batch carries"):
        run(model, tmp_path, world=world)


class GoesDeaf(Tiny):
    """Stops hearing after some forwards."""

    left = 40

    def forward(self, **inputs):
        self.left -= 1
        self.deaf = self.left < 0
        return super().forward(**inputs)


def test_the_proof_repeated_during_the_run_finds_a_modality_that_died(
    tmp_path: Path, world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    model = GoesDeaf()
    train_only(model, TRAIN)
    with pytest.raises(DeadModality, match="audio is dead"):
        run(model, tmp_path, world=world, steps=12, liveness_every=2)
    assert "liveness at step 2: " in capfd.readouterr().err


class RealRows(Rows):
    """Rows of the real model with clips."""

    def batches(self, step: int) -> StepData:
        """Two clips in a row."""
        return StepData(batches=[packed([(2 * step, "both"), (2 * step + 1, "both")])])


def test_the_real_model_is_refused_when_it_does_not_read_what_its_clips_hold(tmp_path: Path, world: World) -> None:
    model = real_model()
    read = model.embed_media

    def unread(media: Sequence[Media], **words: Any) -> torch.Tensor:
        # Image tokens get their embeddings, as in the public trainer, but none that the batch decides.
        blank = [
            replace(item, pixels=torch.zeros(item.frame_count, 3, 128, 128, dtype=torch.uint8), mel=item.mel * 0)
            for item in media
            if item.mel is not None
        ]
        return read(blank, **words)

    model.embed_media = unread  # type: ignore[method-assign, assignment]
    with pytest.raises(DeadModality, match="video is dead"):
        run(model, tmp_path, world=world, source=RealRows(), objective=NextToken())


class Detached(Tiny):
    """Hears, but no gradient reaches the audio projector."""

    def forward(self, **inputs):
        for parameter in self.mlp2.parameters():
            parameter.data = parameter.data.clone()
        self.mlp2.forward = lambda x: torch.nn.functional.linear(x, self.mlp2.weight.detach(), self.mlp2.bias.detach())
        return super().forward(**inputs)


def test_a_trained_module_without_gradient_is_named(tmp_path: Path, world: World) -> None:
    model = Detached()
    train_only(model, TRAIN)
    with pytest.raises(DeadModality, match="audio_projector is to train, but no gradient reaches it"):
        run(model, tmp_path, world=world)


def test_a_layer_unfrozen_behind_the_settings_is_refused(tmp_path: Path, world: World) -> None:
    model = Tiny()
    train_only(model, ["llm"])
    model.vision_model.perceive[0].bias.requires_grad_(True)
    with pytest.raises(DeadModality, match=r"vision_model\.perceive\.0\.bias"):
        run(model, tmp_path, world=world, train=["llm"])


def test_hashes_find_a_frozen_module_that_changed() -> None:
    model = Tiny()
    before = frozen_hashes(model, frozen=["vit", "whisper"])
    assert set(before) == {"vit", "whisper"}
    with torch.no_grad():
        model.speech_encoder.bias[3] += 1e-6
    after = frozen_hashes(model, frozen=["vit", "whisper"])
    assert [name for name in before if after[name] != before[name]] == ["whisper"]


def test_a_live_run_reports_what_it_proved(tmp_path: Path, world: World) -> None:
    model = Tiny()
    train_only(model, TRAIN)
    report = run(model, tmp_path, world=world).liveness
    assert set(report["moved"]) == {f"{name}/{how}" for name in ("video", "audio") for how in ("permuted", "zeroed")}
    assert set(report["gradients"]) == set(TRAIN)
    assert report["notes"] == []


def test_data_without_media_is_noted_not_refused(tmp_path: Path, world: World) -> None:
    model = Tiny()
    train_only(model, ["llm"])
    report = run(model, tmp_path, world=world, source=Rows(media=False), train=["llm"]).liveness
    assert report["notes"] == [
        "no video in the data looked through: not proven alive",
        "no audio in the data looked through: not proven alive",
    ]


def test_permuting_and_zeroing_touch_one_modality_only() -> None:
    row = batch(0, media=(clip(1), clip(2, audio=False)))
    swapped = permuted(row, modality="video", donors=row.media)
    assert swapped is not None
    assert torch.equal(swapped.media[0].pixels, row.media[1].pixels)
    assert torch.equal(swapped.media[0].mel, row.media[0].mel)
    silent = zeroed(row, modality="audio")
    assert not silent.media[0].mel.any()
    assert torch.equal(silent.media[0].pixels, row.media[0].pixels)
    assert permuted(row, modality="audio", donors=row.media) is None


def test_each_proof_reports_how_far_its_own_change_moved_the_logits(world: World) -> None:
    model = Tiny()
    row = batch(0, media=(clip(1), clip(2), clip(3)))

    def forward(one: Batch) -> torch.Tensor:
        return model(**model_inputs(one)).logits

    moved = check_modalities([[row]], forward=forward, world=world).moved
    plain = forward(row)
    for modality in ("video", "audio"):
        swapped = permuted(row, modality=modality, donors=row.media)
        assert swapped is not None
        for name, changed in (("permuted", swapped), ("zeroed", zeroed(row, modality=modality))):
            assert moved[f"{modality}/{name}"] == float((forward(changed) - plain).detach().abs().max()), name
        assert moved[f"{modality}/permuted"] != moved[f"{modality}/zeroed"]


def test_of_a_head_that_scores_no_logits_of_all_words_are_asked(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a row of the 7B they would be 2 GB, four times, and as much again in fp32."""
    seen: list[tuple[int, ...]] = []
    score = Head.forward

    def noted(head: Head, hidden: torch.Tensor, ask: Any = None) -> torch.Tensor:
        rows = score(head, hidden, ask)
        seen.append(tuple(rows.shape))
        return rows

    monkeypatch.setattr(Head, "forward", noted)
    report = run(real_model(), tmp_path, world=world, source=RealRows(), objective=NextToken(), liveness_every=1)
    targets = {len(RealRows().batches(step).batches[0].target_ids) for step in range(3)}
    forwards, proofs, steps = 2 * 4, 3, 3
    assert len(seen) == forwards * proofs + steps
    assert {shape[1] for shape in seen} == targets
    assert all(value > 0 for value in report.liveness["moved"].values())


class Largest(TorchDispatchMode):
    """Notes the most numbers of an fp32 tensor that an operator makes."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
            self.most = max(self.most, result.numel())
        return result


def test_of_logits_two_lie_there_at_a_time_and_a_part_in_fp32(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    row, words, part = batch(0, media=(clip(1), clip(2), clip(3))), 5000, 700
    logits = torch.zeros(11, words, dtype=torch.bfloat16)
    calls = 0
    alive: list[weakref.ref[torch.Tensor]] = []

    def forward(one: Batch) -> torch.Tensor:
        nonlocal calls
        assert sum(made() is not None for made in alive) < 2
        made = logits.clone()
        made[-1, -1] = max(calls % 4 - 1, 0)
        alive.append(weakref.ref(made))
        calls += 1
        return made

    monkeypatch.setattr(liveness, "AT_ONCE", 2 * words + part)
    with Largest() as largest:
        moved = check_modalities([[row]], forward=forward, world=world).moved
    changes = {"permuted": 1.0, "zeroed": 2.0}
    assert moved == {f"{name}/{how}": size for name in ("video", "audio") for how, size in changes.items()}
    assert largest.most == 2 * words


def test_sound_that_is_zero_already_does_not_pass_for_sound(world: World) -> None:
    model = Tiny()
    silent = replace(clip(1), mel=torch.zeros(1, 8, 6))
    rows = [batch(0, media=(silent,)), batch(1, media=(clip(2),))]
    with pytest.raises(DeadModality, match="zeroed audio left every prediction as it was"):
        check_modalities([rows], forward=lambda row: model(**model_inputs(row)).logits, world=world)


class Noisy(Tiny):
    """Has dropout in a tower and in the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.speech_encoder = torch.nn.Sequential(self.speech_encoder, torch.nn.Dropout(0.5))
        self.language_model.layers[0] = torch.nn.Sequential(self.language_model.layers[0], torch.nn.Dropout(0.5))

    def _hear(self, media: Media) -> torch.Tensor:
        return self.speech_encoder(media.mel.mean(dim=(0, 2)))


@pytest.mark.parametrize(("train", "same"), [(["audio_projector"], True), (["whisper"], False), (["llm"], False)])
def test_nothing_random_is_left_in_modules_that_do_not_train(train: list[str], same: bool) -> None:
    model = Noisy()
    model.train()
    train_only(model, train)
    row = batch(0, media=(clip(1),))
    first, again = (model(**model_inputs(row)).logits for _ in range(2))
    assert torch.equal(first, again) is same
