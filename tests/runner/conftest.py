"""What the tests of this room share."""

from __future__ import annotations

import pytest
import torch

from arcvideo.processes.ranks import World, join


@pytest.fixture(scope="session")
def world() -> World:
    """The test process as a run of one rank."""
    torch.set_num_threads(1)
    return join()
