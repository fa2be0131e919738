"""The package as `pip install` leaves it: settings and recipes are inside, and its command works from any directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = ("build", "data", "runs", "*.egg-info", "__pycache__", ".*", "tests", "docs", "benchmarks")


def run(command: Sequence[str | Path], *, cwd: Path) -> str:
    """Run a command away from the repository and return what it says."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the repository."""
    folder = tmp_path_factory.mktemp("build")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    run([*build, folder, "."], cwd=folder / "source")
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console script in a fresh environment, which borrows the dependencies of this one."""
    fresh = tmp_path_factory.mktemp("fresh")
    run([sys.executable, "-m", "venv", "--without-pip", fresh], cwd=fresh)
    python = fresh / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    run(install, cwd=fresh)
    (site,) = (fresh / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    where = run([python, "-c", "import arcvideo; print(arcvideo.__file__)"], cwd=fresh).strip()
    assert Path(where).is_relative_to(site)
    return fresh / "bin" / "arcvideo"


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_conf_and_recipes(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("conf", "recipes"):
        files = {f"arcvideo/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob("*.yaml")}
        assert files
        assert files <= inside
    assert "arcvideo/report/templates/page.html" in inside
    assert not [name for name in inside if name.startswith(("conf/", "recipes/", "tests/"))]


@pytest.mark.slow
def test_the_command_works_from_any_directory(command: Path, tmp_path: Path) -> None:
    assert "usage: arcvideo COMMAND" in run([command, "--help"], cwd=tmp_path)
    shown = yaml.safe_load(run([command, "train", "stage=sft", "--cfg", "job"], cwd=tmp_path))
    assert shown["stage"]["name"] == "sft"
    tree = run([command, "pipeline", "recipe=tiny_shorts", "status"], cwd=tmp_path)
    assert [stage for stage in ("audio_warmup", "grpo", "final_sft") if f"{stage}  not begun" not in tree] == []
    assert list(tmp_path.iterdir()) == []
