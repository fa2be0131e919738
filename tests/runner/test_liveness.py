"""A run that would train without its video, its sound or its gradients refuses to start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from arcvideo.runner.engine import Engine
from arcvideo.runner.liveness import DeadModality, permuted, zeroed
from arcvideo.runner.protocols import BatchSource, RunResult
from arcvideo.runner.ranks import World
from arcvideo.runner.runner import Runner
from arcvideo.runner.settings import OptimizerSettings, RunnerSettings, ScheduleSettings
from arcvideo.runner.trainable import changed_modules, frozen_hashes, train_only
from tests.runner.job import TRAIN
from tests.runner.tiny import Rows, Tiny, batch, clip, cross_entropy


def run(
    model: Tiny, folder: Path, *, world: World, source: BatchSource | None = None, train: list[str] | None = None
) -> RunResult:
    engine = Engine(model, world=world, settings={}, optimizer=OptimizerSettings(lr=1e-2))
    settings = RunnerSettings(steps=3, log_every=1000)
    return Runner(
        engine=engine, source=source or Rows(), objective=cross_entropy, settings=settings,
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
    assert changed_modules(before, frozen_hashes(model, frozen=["vit", "whisper"])) == ["whisper"]


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
