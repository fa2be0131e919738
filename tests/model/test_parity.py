from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from arcvideo.model.arc_hunyuan.language import MLP
from arcvideo.model.disk import parity

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity"
PREPROCESSING = Path(__file__).parents[1] / "fixtures" / "preproc"
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


def test_parameters_that_the_reference_freezes_get_no_gradient(fixtures, gaps):
    assert fixtures.meta["no_grad_params"]["av"]
    assert not [name for name in gaps if "has a gradient" in name]


def test_a_tensor_that_nobody_compares_is_told(fixtures):
    fixtures.outputs["av.invented"] = torch.zeros(1)
    try:
        gaps = dict(parity.differences(fixtures))
    finally:
        del fixtures.outputs["av.invented"]
    assert [name for name, gap in gaps.items() if gap == float("inf")] == [
        "av.invented was not compared: no such tensor here"
    ]


@pytest.mark.parametrize(
    ("stored", "cut"),
    [
        ("text.logits_last", lambda x: x[-7:]),
        ("text.final_hidden_last64", lambda x: x[-5:]),
    ],
)
def test_how_much_is_stored_is_read_from_the_fixture(fixtures, stored, cut):
    whole = fixtures.outputs[stored]
    fixtures.outputs[stored] = cut(whole)
    try:
        assert dict(parity.differences(fixtures))[stored] <= ATOL
    finally:
        fixtures.outputs[stored] = whole


def test_preprocessing_equals_the_reference(capsys):
    assert parity.main(["--fixtures", str(PREPROCESSING), "--atol", "3e-5"]) == 0
    printed = capsys.readouterr().out
    for part in ("indices", "stamps", "fusion table", "resize.normalized", "mel.first_240", "overlay1", "conv1.labels"):
        assert part in printed


def test_text_between_frames_stands_as_in_the_reference(capsys):
    """Ids, labels and positions of conversations whose frames are scattered over a question, and over several."""
    assert parity.main(["--fixtures", str(PREPROCESSING), "--prefix", "scattered", "--atol", "0"]) == 0
    printed = capsys.readouterr().out
    for number in range(4):
        for part in ("input_ids", "labels", "position_ids"):
            assert f"conv{number}.{part}" in printed


def test_preprocessing_notices_a_wrong_label(tmp_path):
    for path in PREPROCESSING.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "dev_preproc.safetensors")
    tensors["conv0.labels"][3] = 5
    save_file(tensors, tmp_path / "dev_preproc.safetensors")
    assert parity.main(["--fixtures", str(tmp_path)]) == 1


def test_a_folder_without_fixtures_is_refused_in_one_line(tmp_path, capsys):
    assert parity.main(["--fixtures", str(tmp_path), "--prefix", "none"]) == 2
    assert "none_meta.json" in capsys.readouterr().err


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
