"""Code that comes with weights, as that of Keye-VL does: which files it is in, and which consent runs it."""

from __future__ import annotations

import json
import traceback
from pathlib import Path

from arcvideo.named import failure
from arcvideo.structured import SettingsError

CONSENT = "trust_remote_code=true"
SERVED = "serve it, for example with vLLM, and give endpoint=URL model=NAME"
"""The way that is left for a model that cannot be loaded here."""
MODEL_CLASSES = ("AutoModelForImageTextToText", "AutoModelForMultimodalLM", "AutoModelForCausalLM", "AutoModel")
"""Names under which a directory offers a class that answers, the most fitting first; Keye-VL offers the last two."""


def auto_map(folder: Path) -> dict[str, str]:
    """Return auto class -> `module.Class` of a directory's own code, from all of its JSON files; empty without any."""
    named: dict[str, str] = {}
    for path in sorted(folder.glob("*.json")):
        if not path.name.endswith("config.json"):
            continue
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue  # whoever reads the file says what is wrong with it
        mapped = config.get("auto_map") if isinstance(config, dict) else None
        for name, place in (mapped if isinstance(mapped, dict) else {}).items():
            first = next((one for one in place if one), None) if isinstance(place, list) else place
            if isinstance(first, str):
                named[name] = first
    return named


def code_files(folder: Path) -> list[str]:
    """Return the names of the Python files that a directory's configuration points to."""
    return sorted({f"{place.rpartition('.')[0]}.py" for place in auto_map(folder).values()})


def refuse_foreign(folder: Path) -> None:
    """Refuse code that stands somewhere else: it is in no digest of the directory, and nobody has read it.

    Raises:
        SettingsError: a class of another repository, or a file that is not there.
    """
    for name, place in auto_map(folder).items():
        module = place.rpartition(".")[0]
        if not module.isidentifier() or not (folder / f"{module}.py").is_file():
            raise SettingsError(
                f"checkpoint={folder}: auto_map gives {name} as {place!r}, whose code is not in this directory; "
                f"put its file there, or {SERVED}"
            )


def model_class(folder: Path) -> str:
    """Return the name of the auto class that loads a directory by its own code."""
    named = auto_map(folder)
    return next((name for name in MODEL_CLASSES if name in named), MODEL_CLASSES[0])


def failed(folder: Path, *, doing: str, error: BaseException) -> SettingsError:
    """Return one line about code of a directory that failed: what it raised, and where."""
    names = {path.name for path in folder.glob("*.py")}  # transformers runs copies of them
    frames = (frame.filename for frame in traceback.extract_tb(error.__traceback__))
    files = {name for name in frames if Path(name).name in names}
    return SettingsError(f"checkpoint={folder}: its own code failed {doing} ({failure(error, files=files)}); {SERVED}")
