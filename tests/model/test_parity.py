from pathlib import Path

import pytest
import torch

from arcvideo.model import parity
from arcvideo.model.language import MLP

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity"
ATOL = 3e-5


@pytest.fixture(scope="module")
def fixtures():
    return parity.Fixtures(FIXTURES, "dev")


@pytest.fixture(scope="module")
def gaps(fixtures):
    return dict(parity.differences(fixtures))


@pytest.mark.parametrize(
    "part", ["vit.", "vision.", "audio.", "av.", "av2seg.", "long.", "text.", "multiturn.", "inferpos.", "decode."]
)
def test_numbers_equal_the_reference(gaps, part):
    mine = {name: gap for name, gap in gaps.items() if name.startswith(part)}
    assert mine
    assert max(mine.values()) <= ATOL, mine


def test_every_stored_output_is_compared(fixtures, gaps):
    assert set(fixtures.outputs) - set(gaps) == {"decode.tokens"}


def test_gradient_norms_are_compared(gaps):
    assert sum(name.startswith("av.norm.") for name in gaps) == 24


def test_command_accepts_the_fixtures(capsys):
    assert parity.main(["--fixtures", str(FIXTURES), "--prefix", "dev", "--atol", "3e-5"]) == 0
    assert "vision.tokens" in capsys.readouterr().out


def test_command_notices_swapped_mlp_halves(monkeypatch, capsys):
    def swapped(self, x):
        b, a = self.gate_and_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(a * torch.nn.functional.silu(b))

    monkeypatch.setattr(MLP, "forward", swapped)
    assert parity.main(["--fixtures", str(FIXTURES)]) == 1
    assert "FAIL" in capsys.readouterr().out
