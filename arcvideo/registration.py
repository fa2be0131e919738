"""Makes transformers know the model and its processor, without importing either before somebody asks for one.

transformers keeps its Auto classes in three modules. When one of them is imported, the classes that belong there are
imported too, and register themselves; `import arcvideo` alone stays a matter of milliseconds.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

OURS = {
    "transformers.models.auto.configuration_auto": "arcvideo.model.configuration",
    "transformers.models.auto.modeling_auto": "arcvideo.model.modeling",
    "transformers.models.auto.processing_auto": "arcvideo.processing",
}
"""Where transformers keeps a kind of Auto class -> the module of ours that registers its class there."""


def register() -> None:
    """Register now where transformers is already imported, and later where it is not."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    for theirs, ours in OURS.items():
        # One that is just being imported does it itself, at its end.
        if theirs in sys.modules and not getattr(sys.modules[theirs].__spec__, "_initializing", False):
            importlib.import_module(ours)


class _Finder(MetaPathFinder):
    """Finds the three modules where they are, and adds ours behind them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in OURS:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, ours=OURS[fullname])
        return spec


class _Loader(Loader):
    def __init__(self, loader: Loader, *, ours: str) -> None:
        self._loader = loader
        self._ours = ours

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        # Ours may be what imports theirs: then it is in the middle of being imported and registers when it is done.
        importlib.import_module(self._ours)

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)
