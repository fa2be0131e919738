"""The engine: DeepSpeed's private corners we rely on, skipping, Muon, hidden modules."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
import torch

from arcvideo.model.settings import RECOMPUTES
from arcvideo.objectives.next_token import NextToken
from arcvideo.processes.ranks import World
from arcvideo.runner.engine import Engine, Refuse
from arcvideo.runner.optimizer import MuonWithAdamW, build_optimizer, lr_ratio, parameter_groups, peak_lrs
from arcvideo.runner.settings import OPTIMIZERS, OptimizerSettings, ScheduleSettings
from arcvideo.runner.trainable import tensor_digest, train_only
from arcvideo.types import model_inputs
from tests.compose import settings
from tests.runner.job import TRAIN, build_engine, engine_keys
from tests.runner.real import Cut, real_model
from tests.runner.tiny import Rows, Tiny, cross_entropy

# DeepSpeed's bf16 optimizer of ZeRO-1 collects garbage at every turn and is slow to build.
SLOW = pytest.param(1, "bf16", marks=pytest.mark.slow)
CASES = [*((stage, "fp32") for stage in range(4)), (0, "bf16"), SLOW, (2, "bf16"), (3, "bf16")]


def one_step(engine: Engine, *, step: int = 0, factor: float = 1.0, refuse: Refuse = lambda norm: False) -> bool:
    batches = Rows().batches(step).batches
    for number, row in enumerate(batches):
        loss = cross_entropy(engine(**model_inputs(row)), row).total / 50
        engine.backward(loss * factor, last=number == len(batches) - 1)
    return engine.step(refuse=refuse).applied


def test_deepspeed_still_has_the_switch_that_keeps_it_from_compiling(world: World) -> None:
    build_engine(world=world)
    operations = importlib.import_module("deepspeed.ops")
    communication = importlib.import_module("deepspeed.comm.torch")
    assert operations.__compatible_ops__["deepspeed_shm_comm"] is False
    assert communication.build_shm_op() is None


@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_a_non_finite_loss_leaves_every_bit_of_the_weights(world: World, stage: int, precision: str) -> None:
    engine = build_engine(world=world, stage=stage, precision=precision)
    assert one_step(engine)
    before = tensor_digest(engine.weights()), tensor_digest(engine.optimizer_state())
    assert not one_step(engine, step=1, factor=float("inf"))
    assert (tensor_digest(engine.weights()), tensor_digest(engine.optimizer_state())) == before
    assert one_step(engine, step=2)
    assert tensor_digest(engine.weights()) != before[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_rank_alone_at_zero_0_steps_to_the_bits_of_a_step_through_deepspeed(world: World, precision: str) -> None:
    digests = []
    for keys in ({}, {"dump_state": False}):  # any further key may ask DeepSpeed for something, so it is asked
        torch.manual_seed(0)
        model = Tiny()
        train_only(model, TRAIN)
        engine = Engine(
            model, world=world, settings=engine_keys(0) | keys, optimizer=OptimizerSettings(), precision=precision,
            clip_norm=0.05,
        )  # fmt: skip
        assert [one_step(engine, step=step, refuse=lambda _, step=step: step == 1) for step in range(3)] == [
            True, False, True,
        ]  # fmt: skip
        assert engine._deepspeed.global_steps == (2 if keys else 0)
        digests.append((tensor_digest(engine.weights()), tensor_digest(engine.optimizer_state())))
    assert digests[0] == digests[1]


def test_what_no_batch_reached_is_a_gradient_of_zero(world: World) -> None:
    engine = build_engine(world=world)
    (batch, *_) = Rows().batches(0).batches
    engine.backward(cross_entropy(engine(**model_inputs(batch)), batch).total, last=True)
    name, parameter = next(iter(engine.trained_parameters().items()))
    parameter.grad = None
    assert engine.step().applied
    state = dict(engine.optimizer_state())
    assert not state[f"exp_avg/{name}"].any()
    assert not state[f"exp_avg_sq/{name}"].any()


@pytest.mark.parametrize("stage", [0, 3])
def test_frozen_modules_are_hidden_from_deepspeed_and_come_back(world: World, stage: int) -> None:
    names = [name for name, _ in Tiny().named_parameters()]
    engine = build_engine(world=world, stage=stage)
    seen = {name for name, _ in engine.model.named_parameters()}
    assert not any(name.startswith(("vision_model.vit", "speech_encoder")) for name in seen)
    assert not hasattr(engine.model.vision_model.vit.weight, "ds_id")
    one_step(engine)
    weights = dict(engine.weights())
    model = engine.close()
    assert [name for name, _ in model.named_parameters()] == names
    assert all(torch.equal(dict(model.named_parameters())[name], tensor) for name, tensor in weights.items())
    assert torch.equal(model.vision_model.vit.weight, Tiny().vision_model.vit.weight)


def test_whole_weights_under_zero3_give_the_logits_of_a_training_forward(world: World) -> None:
    engine = build_engine(world=world, stage=3)
    one_step(engine)
    row = Rows().batches(3).batches[1]
    expected = engine(**model_inputs(row)).detach()
    with engine.whole_weights() as model, torch.no_grad():
        for _ in range(2):
            assert torch.equal(model(**model_inputs(row)).logits, expected)
    assert one_step(engine, step=1)


def test_clipping_scales_the_update_to_the_norm_asked_for(world: World) -> None:
    small, large = build_engine(world=world), build_engine(world=world)
    one_step(small, factor=1e3)
    one_step(large, factor=1e4)
    for (_, one), (_, other) in zip(small.weights(), large.weights(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_muon_moves_decoder_matrices_and_adamw_the_rest(world: World) -> None:
    model = Tiny()
    train_only(model, TRAIN)
    optimizer = build_optimizer(model.named_parameters(), settings=OptimizerSettings(name="muon"))
    assert isinstance(optimizer, MuonWithAdamW)
    by_muon = {id(item) for group in optimizer.param_groups if group["muon"] for item in group["params"]}
    assert by_muon == {id(layer.weight) for layer in model.language_model.layers}
    engine = build_engine(world=world, name="muon", muon_lr=0.05)
    before = dict(engine.weights())
    engine.set_lr(0.0)
    one_step(engine)
    assert all(torch.equal(before[name], tensor) for name, tensor in engine.weights())
    engine.set_lr(1.0)
    one_step(engine, step=1)
    assert not any(torch.equal(before[name], tensor) for name, tensor in engine.weights())


def test_norms_and_biases_get_no_weight_decay_and_modules_their_own_rate() -> None:
    model = Tiny()
    train_only(model, TRAIN)
    settings = OptimizerSettings(lr=1.0, weight_decay=0.1, lr_factors={"audio_projector": 0.5})
    for group in parameter_groups(model.named_parameters(), settings=settings):
        assert group["weight_decay"] == (0.1 if group["params"][0].ndim >= 2 else 0.0)
        assert group["lr"] == (0.5 if group["module"] == "audio_projector" else 1.0)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_rate_of_a_module_is_a_rate_whichever_optimizer_moves_it(name: str) -> None:
    model = Tiny()
    train_only(model, TRAIN)
    settings = OptimizerSettings(
        name=name, lr=2e-3, muon_lr=7e-3, module_lrs={"llm": 1e-4}, lr_factors={"llm": 9.0, "audio_projector": 0.5}
    )
    rates = peak_lrs(model.named_parameters(), settings=settings)
    assert rates["llm"] == [1e-4]
    assert rates["audio_projector"] == [1e-3]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_highest_rate_over_a_run_is_the_rate_that_was_asked_for(
    world: World, optimizer: str, schedule: str
) -> None:
    model = Tiny()
    train_only(model, TRAIN)
    asked = OptimizerSettings(name=optimizer, lr=2e-3, muon_lr=7e-3, module_lrs={"llm": 1e-4})
    engine = Engine(model, world=world, settings=engine_keys(0), optimizer=asked, clip_norm=1.0)
    shape, seen = ScheduleSettings(name=schedule, warmup_steps=4), []
    for step in range(20):
        engine.set_lr(lr_ratio(step, schedule=shape, steps=20))
        seen.append({(group["module"], group["lr"]) for group in engine._basic().param_groups})
    rates = {rate for row in seen for module, rate in row if module == "llm"}
    assert max(rates) == 1e-4
    assert dict(seen[0])["llm"] == pytest.approx(1e-4 / 5)
    others = {rate for row in seen for module, rate in row if module == "audio_projector"}
    assert max(others) == 2e-3


def test_nothing_to_train_is_an_error_that_names_the_key() -> None:
    model = Tiny()
    train_only(model, [])
    with pytest.raises(ValueError, match=r"stage\.train"):
        build_optimizer(model.named_parameters(), settings=OptimizerSettings())


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_bf16_starts_from_all_bits_and_gives_the_frozen_ones_back(world: World, stage: int) -> None:
    first = dict(Tiny().named_parameters())
    engine = build_engine(world=world, stage=stage, precision="bf16")
    assert all(torch.equal(tensor, first[name]) for name, tensor in engine.weights())
    one_step(engine)
    model = engine.close()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.speech_encoder.weight, first["speech_encoder.weight"])


def test_a_frozen_copy_changed_during_training_is_found(world: World) -> None:
    engine = build_engine(world=world, stage=2, precision="bf16")
    with torch.no_grad():
        engine.model.speech_encoder.weight[0, 0] += 1
    with pytest.raises(ValueError, match="was changed during training"):
        engine.close()


OFFLOADED = ["zero2_offload", "zero3_offload"]
ROUNDING = 2.0**-24
"""Largest relative error of rounding one number to fp32."""


def pair(name: str, *, world: World, clip_norm: float, lr: float = 1e-2) -> Iterator[Engine]:
    """The engine called `name` and the same one without offloading, around equal models."""
    for engine_name in (name, name.removesuffix("_offload")):
        model = Tiny()
        train_only(model, TRAIN)
        keys = settings("stage=sft", "optimizer.name=adamw", f"engine={engine_name}").engine
        optimizer = OptimizerSettings(lr=lr)
        yield Engine(model, world=world, settings=keys, optimizer=optimizer, clip_norm=clip_norm)


@pytest.mark.parametrize("name", OFFLOADED)
def test_offloaded_engines_train_to_the_bits_of_the_others_in_fp32(world: World, name: str) -> None:
    ends = []
    for engine in pair(name, world=world, clip_norm=0.0):
        assert one_step(engine)
        assert one_step(engine, step=1)
        ends.append((tensor_digest(engine.weights()), tensor_digest(engine.optimizer_state())))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("name", OFFLOADED)
def test_offloaded_engines_clip_by_the_norm_of_the_others_up_to_its_rounding(world: World, name: str) -> None:
    """The gradients have equal bits (above), but DeepSpeed takes their norm by two formulas, in fp64 and fp32.

    With offloading the sum of squares of a group is added in Python's order and rounded to fp32 before its root is
    taken; without it torch adds in the order of its kernel, and ZeRO-3 rounds after the root. In units of u = 2^-24,
    relative, and leaving out what fp64 loses: a rounded square (1, halved by the root) and a rounded root (1) make 3/2
    for a group, or 1. Joining the six groups takes a square (1), five additions (5), a root that halves both, and
    rounds (1): 4. So the norms differ by at most 3/2 + 3/2 + 4 + 4 = 11 u.

    The gradient is scaled by it in four operations: 11 + 4 + 4 = 19 u. The first moment is one product of the gradient
    (19 + 1 + 1 = 21 u), the second one two products of its square (38 + 2 + 2 = 42 u). AdamW's first step, at most lr
    long, is m / (sqrt(v) + eps) in seven operations: 21 + 42 / 2 + 7 + 7 = 56 u. Adding it rounds the weight (1 + 1 u).
    """
    lr, norms, moments, weights = 1e-2, [], [], []
    for engine in pair(name, world=world, clip_norm=0.5, lr=lr):
        assert one_step(engine, factor=10.0, refuse=lambda norm: bool(norms.append(norm)))
        moments.append(dict(engine.optimizer_state()))
        weights.append(dict(engine.weights()))
    assert norms[0] > 0.5, "nothing was clipped"
    assert norms[0] == pytest.approx(norms[1], rel=11 * ROUNDING, abs=0)
    for key, value in moments[0].items():
        bound = (42 if key.startswith("exp_avg_sq") else 21) * ROUNDING
        torch.testing.assert_close(value, moments[1][key], rtol=bound, atol=1e-38)  # below it, fp32 has fewer digits
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=2 * ROUNDING, atol=56 * ROUNDING * lr)


@pytest.mark.parametrize(("stage", "precision"), [(2, "fp32"), (2, "bf16"), (3, "fp32"), (3, "bf16")])
def test_offloaded_engines_continue_exactly_even_after_a_refused_step(world: World, stage: int, precision: str) -> None:
    engine = build_engine(world=world, stage=stage, precision=precision, offload=True)
    assert one_step(engine)
    assert not one_step(engine, step=1, factor=float("inf"))
    resumed = build_engine(world=world, stage=stage, precision=precision, offload=True)
    resumed.load_state(weights=dict(engine.weights()), optimizer=dict(engine.optimizer_state()), steps_applied=1)
    for one in (engine, resumed):
        assert one_step(one, step=2)
    assert tensor_digest(resumed.weights()) == tensor_digest(engine.weights())
    assert tensor_digest(resumed.optimizer_state()) == tensor_digest(engine.optimizer_state())


@pytest.mark.parametrize("stage", [0, 3])
def test_recomputed_activations_give_the_same_step(world: World, stage: int) -> None:
    curves = {}
    for recompute in RECOMPUTES:
        model = real_model()
        model.activation_checkpointing = recompute
        engine = Engine(model, world=world, settings=engine_keys(stage), optimizer=OptimizerSettings(lr=1e-3))
        for row in Cut(rows=2).batches(0).batches:
            engine.backward(NextToken()(engine(**model_inputs(row)), row).total, last=row.keys[0] != "text-0")
        curves[recompute] = (engine.step().grad_norm, tensor_digest(engine.weights()))
    assert curves["none"] == curves["selective"] == curves["full"]
