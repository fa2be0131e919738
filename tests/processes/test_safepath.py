"""Commands that are started in somebody else's folder import nothing from there; what was named they do."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from arcvideo import named
from tests.spawned import finished

ROOT = Path(__file__).resolve().parents[2]
EVIL = "open({ran!r}, 'a').write(__name__ + ' ')\n"
SCRIPT = "from arcvideo.__main__ import main\nmain()\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose modules take the place of others, and say so when they are run."""
    place = tmp_path / "theirs"
    (place / "hydra_plugins").mkdir(parents=True)
    evil = EVIL.format(ran=str(tmp_path / "ran"))
    for name in ("yaml", "jinja2", "hydra_plugins/evil", "soundfile", "contextlib", "typing", "numpy", "torchvision"):
        (place / f"{name}.py").write_text(evil)
    (place / "theirs-1.dist-info").mkdir()
    (place / "theirs-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (place / "theirs-1.dist-info" / "entry_points.txt").write_text("[arcvideo.loggers]\nx = yaml:x\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "arcvideo").write_text(SCRIPT)
    return place


@pytest.mark.parametrize(
    "words",
    [
        ["train", "stage=sft", "--cfg", "job"],
        ["pipeline", "recipe=tiny_shorts", "status"],
        ["verify", "."],
        ["report", "."],
        ["shards", "index", "nowhere.tar"],
        ["preflight", "recipe=tiny_shorts"],
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("script", [False, True])
def test_nothing_is_imported_from_the_folder_that_a_command_is_started_in(
    folder: Path, words: list[str], script: bool
) -> None:
    start = [str(folder.parent / "bin" / "arcvideo")] if script else ["-m", "arcvideo"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = finished([sys.executable, *start, *words], seconds=300, cwd=folder, env=env)
    assert "Traceback" not in done.stderr
    assert not (folder.parent / "ran").exists(), (folder.parent / "ran").read_text()


@pytest.mark.parametrize("script", [False, True])
def test_an_objective_in_the_working_directory_is_found_however_the_command_is_started(
    folder: Path, script: bool
) -> None:
    (folder / "mine.py").write_text("class Thing: ...\n")
    start = [str(folder.parent / "bin" / "arcvideo")] if script else ["-m", "arcvideo"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = ["train", "stage=sft", "parent=nowhere", "stage.objective=mine:{}"]
    found, absent = (
        finished([sys.executable, *start, *words[:-1], words[-1].format(name)], seconds=300, cwd=folder, env=env)
        for name in ("Thing", "Thinh")
    )
    assert "did you mean 'Thing'" in absent.stderr
    assert "mine" not in found.stderr
    assert not (folder.parent / "ran").exists()


def test_what_is_named_comes_from_the_working_directory_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(folder)
    (folder / "mine_too.py").write_text("from mine_as_well import thing\n")
    (folder / "mine_as_well.py").write_text("thing = 1\n")
    named.imported("yaml:safe_load", what="x")
    assert str(folder) not in sys.path
    assert named.imported("mine_too:thing", what="x") == 1
    assert sys.path[-1] == str(folder)
    with pytest.raises(ValueError, match="x cannot be imported: No module named 'mine_never'"):
        named.imported("mine_never:thing", what="x")
