"""Old log-probabilities out of the update's own forward: one forward less, the same gradient, the same gate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from arcvideo.objectives import OBJECTIVES, objective_row
from arcvideo.objectives.agreement import GAP, OUTLIERS, judged
from arcvideo.objectives.grpo import Grpo
from arcvideo.objectives.scores import forward_of, loss_of
from arcvideo.objectives.settings import GrpoSettings
from arcvideo.processes.ranks import join
from arcvideo.rollout.source import RolloutSource
from arcvideo.runner.runner import Runner
from arcvideo.runner.settings import RunnerSettings, ScheduleSettings
from arcvideo.tracking.metrics import merge, read_metrics
from arcvideo.types import StepData
from tests.rollout import job
from tests.rollout.test_source import SETTINGS, make_source
from tests.rollout.world import tokenizer

NO_REFERENCE = replace(SETTINGS, beta=0.0)


def updated(source: RolloutSource, data: StepData, *, lr: float) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradients of an update that is then made, and the metrics the Runner would write."""
    model, objective = source.engine.model, Grpo(source.settings)
    model.zero_grad()
    pairs: list[dict[str, list[float]]] = []
    for batch in data.batches:
        loss = loss_of(objective, batch, run=forward_of(model))
        loss.total.backward()
        pairs.append({name: [float(total), float(count)] for name, (total, count) in loss.metrics.items()})
    told = merge(pairs) | dict(data.metrics) | objective.judge(pairs)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in gradients:
                parameter -= lr * gradients[name]
    return gradients, told


def counted(source: RolloutSource) -> list[int]:
    """How many rows with targets the policy has been run on."""
    runs = [0]

    def count(module: Any, arguments: Any, words: dict[str, Any]) -> None:
        runs[0] += words.get("target_positions") is not None

    source.engine.model.register_forward_pre_hook(count, with_kwargs=True)
    return runs


def off(source: RolloutSource, monkeypatch: pytest.MonkeyPatch, *, tokens: slice, by: float) -> None:
    """Let the sampler be wrong about some tokens of the second completion."""
    real = source._sampler.sample

    def wrong(*arguments: Any, **options: Any) -> Any:
        groups = real(*arguments, **options)
        logprobs = groups[0].completions[1].logprobs.clone()
        logprobs[tokens] -= by
        bad = replace(groups[0].completions[1], logprobs=logprobs)
        completions = (groups[0].completions[0], bad, *groups[0].completions[2:])
        return [replace(groups[0], completions=completions), *groups[1:]]

    monkeypatch.setattr(source._sampler, "sample", wrong)


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize(
    "settings", [SETTINGS, replace(SETTINGS, loss_type="dapo", importance_sampling_level="sequence")]
)
def test_gradients_and_weights_are_those_of_two_forwards(settings: GrpoSettings, recompute: str) -> None:
    sources = [make_source(settings, own_forward=own) for own in (False, True)]
    for source in sources:
        source.engine.model.activation_checkpointing = recompute
    for step in range(3):
        two, one = (updated(source, source.batches(step), lr=0.05) for source in sources)
        assert two[0].keys() == one[0].keys()
        assert all(torch.equal(two[0][name], gradient) for name, gradient in one[0].items())
        times = {name for name in two[1] if name.startswith(("rollout/seconds", "rollout/tokens_per_second"))}
        assert {name: two[1][name] for name in two[1].keys() - times} == pytest.approx(
            {name: one[1][name] for name in one[1].keys() - times}, rel=1e-6, abs=1e-9
        )
    weights = [source.engine.model.state_dict() for source in sources]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize(("own", "runs"), [(False, 2), (True, 1)])
def test_a_step_runs_the_policy_once_a_row(own: bool, runs: int) -> None:
    source = make_source(NO_REFERENCE, own_forward=own)
    rows = len(source.batches(0).batches)
    counts = counted(source)
    updated(source, source.batches(1), lr=0.05)
    assert counts[0] == runs * rows


def test_the_first_rollout_is_looked_at_before_anything_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(own_forward=True)
    off(source, monkeypatch, tokens=slice(None), by=1.0)
    with pytest.raises(ValueError, match=r"by 1 nats about one of a/0#1"):
        source.batches(0)


def test_later_a_sampler_that_disagrees_is_refused_before_the_weights_move(monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(own_forward=True)
    updated(source, source.batches(0), lr=0.05)
    off(source, monkeypatch, tokens=slice(None), by=1.0)
    data = source.batches(1)
    before = {name: value.clone() for name, value in source.engine.model.state_dict().items()}
    with pytest.raises(ValueError, match=r"max_logprob_gap=0\.05 nats about \d+ of \d+ tokens"):
        updated(source, data, lr=0.05)
    assert all(torch.equal(value, before[name]) for name, value in source.engine.model.state_dict().items())


@pytest.mark.parametrize("wrong", [1.0, float("nan")])
def test_one_odd_token_is_left_out_and_counted_as_with_two_forwards(
    monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    found = []
    for own in (False, True):
        source = make_source(own_forward=own)
        updated(source, source.batches(0), lr=0.05)
        off(source, monkeypatch, tokens=slice(2, 3), by=wrong)
        found.append(updated(source, source.batches(1), lr=0.05))
    assert all(told[OUTLIERS] == 1 for _, told in found)
    assert all(torch.equal(gradient, found[1][0][name]) for name, gradient in found[0][0].items())


def test_updates_that_need_gone_weights_keep_their_forward() -> None:
    source = make_source(replace(NO_REFERENCE, num_iterations=2), own_forward=True)
    for step in (0, 2):
        assert all("old_logprobs" in batch.extra for batch in source.batches(step).batches)


def test_ranks_are_judged_together() -> None:
    settings = replace(SETTINGS, max_logprob_outliers=0.01)
    few = {GAP: [1.0, 100.0], OUTLIERS: [1.0, 100.0]}
    assert judged([few, few, {}], settings=settings) == {GAP: 0.01, OUTLIERS: 2.0}
    assert judged([{}], settings=settings) == {}
    with pytest.raises(ValueError, match="about 3 of 200 tokens"):
        judged([few, few | {OUTLIERS: [2.0, 100.0]}], settings=settings)


def test_a_class_of_ones_own_gets_the_old_log_probabilities() -> None:
    assert OBJECTIVES["grpo"].own_forward
    assert not objective_row(f"{__name__}:Grpo", feed="rollouts").own_forward


@pytest.mark.slow
def test_a_run_trains_to_the_same_bits_and_books_the_same_gaps(tmp_path: Path) -> None:
    settings = replace(job.SETTINGS, num_iterations=1, max_refills=0)
    found = []
    for own in (False, True):
        engine = job.make_engine(join(), stage=0)
        source = RolloutSource(
            job.Stream(engine.world), engine=engine, tokenizer=tokenizer(), settings=settings, own_forward=own
        )
        Runner(
            engine=engine, source=source, held=source, objective=Grpo(settings), train=["llm"],
            folder=tmp_path / str(own), identity="tiny", schedule=ScheduleSettings(name="constant"),
            settings=RunnerSettings(steps=3, save_every=1, liveness=False, log_every=1000),
        ).run()  # fmt: skip
        lines = read_metrics(tmp_path / str(own) / "metrics.jsonl")
        found.append((dict(engine.weights()), [line[f"train/{OUTLIERS}"] for line in lines], lines))
    (two, outliers, lines), (one, outliers_of_one, _) = found
    assert outliers_of_one == outliers
    assert len(lines) == 3
    assert all(torch.equal(weight, two[name]) for name, weight in one.items())


@pytest.fixture(scope="module")
def among_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], dict[str, Any]]:
    """(ZeRO stage, way) -> three updates of two ranks."""
    folder = tmp_path_factory.mktemp("own")
    ways: dict[str, dict[str, Any]] = {
        "two": {"own_forward": False}, "one": {"own_forward": True}, "wrong": {"own_forward": True, "wrong": 1},
    }  # fmt: skip
    cases = [(stage, way) for stage in (0, 3) for way in ways]
    tasks = [
        {"kind": "own", "folder": str(folder / f"{stage}-{way}"), "stage": stage, **ways[way]} for stage, way in cases
    ]
    return dict(zip(cases, job.run_ranks(tasks, ranks=2, results=folder / "results.json"), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_two_ranks_train_to_the_bits_of_two_forwards(among_ranks: dict[Any, Any], stage: int) -> None:
    two, one = among_ranks[stage, "two"], among_ranks[stage, "one"]
    assert (two["refused"], one["refused"]) == ("", "")
    assert one["weights"] == two["weights"]
    assert len(one["curve"]) == 3
    for here, there in zip(one["curve"], two["curve"], strict=True):
        assert here[:3] == there[:3]
        assert here[3:] == pytest.approx(there[3:], rel=1e-5, abs=1e-9)  # gaps are added up in another order
    assert [weights for weights, _ in one["others"]] == [one["weights"]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_what_one_rank_finds_of_the_sampler_stops_all_before_the_weights_move(
    among_ranks: dict[Any, Any], stage: int
) -> None:
    found, sane = among_ranks[stage, "wrong"], among_ranks[stage, "one"]
    for _, refused in found["others"]:
        assert "disagree by more than grpo.max_logprob_gap" in refused
    assert found["curve"] == sane["curve"][:1]  # the first update is that of the run without a wrong sampler
    assert found["weights"] != sane["weights"]
    assert len({tuple(weights.items()) for weights, _ in found["others"]}) == 1
