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


HOOKED = """
import sys
from importlib.machinery import PathFinder

class Hook:
    \"\"\"As those that count branches or check types: every module that it finds, it executes itself.\"\"\"

    def __init__(self):
        self.executed, self.loaders = [], {}

    def find_spec(self, fullname, path=None, target=None):
        spec = PathFinder.find_spec(fullname, path)
        if spec is None or not fullname.startswith("arcvideo"):
            return None
        self.loaders[fullname], spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        self.executed.append(module.__name__)
        self.loaders[module.__name__].exec_module(module)

hook = Hook()
sys.meta_path.insert(0, hook)
import arcvideo.files, arcvideo.seals
from transformers import AutoConfig
AutoConfig.for_model("arc_hunyuan_video")
print(*hook.executed)
"""


def test_import_hooks_of_others_see_every_module_once() -> None:
    done = subprocess.run([sys.executable, "-c", HOOKED], cwd=ROOT, capture_output=True, text=True, check=True)
    seen = done.stdout.split()
    assert {"arcvideo", "arcvideo.files", "arcvideo.seals", "arcvideo.model.configuration"} <= set(seen)
    assert len(seen) == len(set(seen))
