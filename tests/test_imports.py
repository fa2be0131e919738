"""Every module of the package can be the first that a process imports, and transformers knows the model afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.test_floors import FILES, ROOT, name_of

MODULES = sorted(
    f"arcvideo.{name_of(path).removesuffix('.py').removesuffix('/__init__').replace('/', '.')}"
    for path in FILES
    if path.stem not in ("__main__", "__init__") or path.parent.name != "arcvideo"
)
CODE = """
import importlib, os, sys
for name in sys.argv[1:]:
    child = os.fork()
    if child:
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{name} cannot be imported first")
        continue
    importlib.import_module(name)
    if "transformers" in sys.modules:
        from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
        config = AutoConfig.for_model("arc_hunyuan_video")
        assert type(config) in AutoModelForImageTextToText._model_mapping, name
    os._exit(0)
"""
"""A fork of a process that has imported nothing of ours is as fresh as a new one, and pays for torch once."""


def fresh(modules: list[str], *, warm: str = "import torch, numpy, PIL, tokenizers") -> None:
    code = f"{warm}\n{CODE}" if warm else CODE
    done = subprocess.run([sys.executable, "-c", code, *modules], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout


def test_modules_that_others_build_on_can_be_imported_first() -> None:
    """`transformers.modeling_layers` reaches the Auto classes, which import our model, which needs the first module."""
    fresh(["arcvideo.model.towers.audio"])


@pytest.mark.slow
@pytest.mark.nightly
def test_every_module_can_be_imported_first() -> None:
    assert len(MODULES) > 100
    fresh([name for name in MODULES if not name.endswith("__main__")])
