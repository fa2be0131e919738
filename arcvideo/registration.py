"""Makes transformers know the model and its processor, without importing either before somebody asks for one.

transformers keeps its Auto classes in three modules. When one of them is imported, the classes that belong there are
imported too, and register themselves; `import arcvideo` alone stays a matter of milliseconds. Where one of our own
modules is what imports transformers, ours wait until it is whole: they may need it.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable, Sequence
from copy import copy
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

OURS = {
    "transformers.models.auto.configuration_auto": "arcvideo.model.configuration",
    "transformers.models.auto.modeling_auto": "arcvideo.model.modeling",
    "transformers.models.auto.processing_auto": "arcvideo.processing",
}
"""Where transformers keeps a kind of Auto class -> the module of ours that registers its class there."""
PACKAGE = __name__.partition(".")[0] + "."


def register() -> None:
    """Register now where transformers is already imported, and later where it is not."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    for theirs, ours in OURS.items():
        # One that is just being imported does it itself, at its end.
        if theirs in sys.modules and not getattr(sys.modules[theirs].__spec__, "_initializing", False):
            importlib.import_module(ours)


class _Finder(MetaPathFinder):
    """Finds the three modules where they are and adds ours behind them; counts which of ours are being imported."""

    def __init__(self) -> None:
        self._entered = 0
        self._waiting: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in OURS and not fullname.startswith(PACKAGE):
            return None
        spec = self._found(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = self._then_ours if fullname in OURS else self._counted
            spec.loader = copy(spec.loader)  # that of a hook may be shared by everything that it finds
            spec.loader.exec_module = execute(spec.loader, fullname)  # type: ignore[method-assign, assignment, unused-ignore]
        return spec

    def _found(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        """Return what those behind this one find: a hook that counts or checks what is imported is one of them."""
        behind = itertools.dropwhile(lambda finder: finder is not self, list(sys.meta_path))
        for finder in itertools.islice(behind, 1, None):
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                return spec
        return None

    def _then_ours(self, loader: Loader, fullname: str) -> Callable[[ModuleType], None]:
        run = loader.exec_module

        def execute(module: ModuleType) -> None:
            run(module)
            self._waiting.append(OURS[fullname])
            self._settle()

        return execute

    def _counted(self, loader: Loader, fullname: str) -> Callable[[ModuleType], None]:
        run = loader.exec_module

        def execute(module: ModuleType) -> None:
            self._entered += 1
            try:
                run(module)
            finally:
                self._entered -= 1
            self._settle()

        return execute

    def _settle(self) -> None:
        while self._waiting and not self._entered:
            importlib.import_module(self._waiting.pop(0))
