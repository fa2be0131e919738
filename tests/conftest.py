"""A small world that several tests share: a few TinyShorts clips and hardly trained base weights."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import hypothesis
import pytest

from tests.spawned import children, end_family

TESTS = os.getpid()

# The same examples in every run, and no clock that decides: a test passes or fails by what it tests.
hypothesis.settings.register_profile(
    "same", derandomize=True, database=None, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("same")


@dataclass(frozen=True, kw_only=True)
class SmallWorld:
    """Folders; whoever trains writes elsewhere."""

    data: Path
    """train-, test- and text-*.tar."""
    base: Path
    """Base weights of the tiny model."""
    features: Path
    """Tower outputs of the training clips."""

    @property
    def overrides(self) -> list[str]:
        """A short run of any stage on this data, starting from the base weights."""
        return [
            f"data_dir={self.data}",
            f"base={self.base}",
            f"parent={self.base}",
            "threads=1",
            "data.token_budget=1024",
            "runner.steps=3",
            "runner.log_every=1",
            "schedule.warmup_steps=1",
            "evaluation.items=6",
            "evaluation.max_new_tokens=4",
            "evaluation.bootstrap=20",
        ]


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """Whatever draws without a seed of its own draws the same, whichever tests ran before."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    """Made once for all tests that ask for it; takes some seconds."""
    from arcvideo.synthetic.base import main
    from arcvideo.synthetic.settings import TinyShortsSettings
    from arcvideo.synthetic.write import write_dataset

    root = tmp_path_factory.mktemp("world")
    made = SmallWorld(data=root / "data", base=root / "base", features=root / "features")
    write_dataset(made.data, settings=TinyShortsSettings(clips=16, test_clips=8, texts=8, seed=1), workers=1)
    steps = ["--vision-steps=3", "--audio-steps=3", "--language-steps=3", "--workers=1", "--threads=1"]
    assert main([f"--data={made.data}", f"--out={made.base}", f"--features={made.features}", *steps]) == 0
    return made


def _interrupted(number: int, frame: FrameType | None) -> None:
    if os.getpid() != TESTS:  # a fork of the tests, which ends as any other process does
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    raise KeyboardInterrupt


def pytest_configure() -> None:
    """Tests that a time limit stops (SIGTERM) end as by Ctrl-C, so that they clean up behind themselves."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupted)


def pytest_sessionfinish(exitstatus: int) -> None:
    """Tests that were interrupted leave no process behind, whoever started it."""
    if exitstatus == pytest.ExitCode.INTERRUPTED:
        for child in children(os.getpid()):
            end_family(child)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu are skipped where there is none, also when nobody left them out by their mark."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    for item in marked if not torch.cuda.is_available() else []:
        item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
