"""What a shell offers behind `arcvideo`: commands, recipes, groups with their options, settings."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import fields

SHELLS = ("bash", "zsh", "fish")
_BASH = """_arcvideo() {
    local IFS=$'\\n' line="${COMP_LINE:0:COMP_POINT}"
    # Bash replaces what stands behind the last = or : of the word.
    local word="${line##* }" kept=""
    case "$word" in *[=:]*) kept="${word%"${word##*[=:]}"}" ;; esac
    COMPREPLY=($(arcvideo --complete "$line" 2>/dev/null))
    COMPREPLY=("${COMPREPLY[@]#"$kept"}")
    case "${COMPREPLY[0]}" in *=) compopt -o nospace 2>/dev/null ;; esac
}
complete -o default -F _arcvideo arcvideo"""
_FISH = "complete -c arcvideo -f -a '(arcvideo --complete (commandline -cp))'"
_HYDRA = ("train", "pipeline", "preflight")
_WORDS = {
    "ask": ("arcvideo.ask", "AskSettings"),
    "evaluate": ("arcvideo.measuring.settings", "EvaluateSettings"),
    "sample": ("arcvideo.sampling.settings", "SampleSettings"),
}
"""Command -> where the settings of its words are."""
_OWN = {"pipeline": ("status", "stale=", "gates="), "preflight": ("stage=", "device=", "gpus=")}
_SHARDS = ("import", "index", "verify", "inspect", "stats", "transcribe")


def script(shell: str) -> str:
    """Return the code that `eval "$(arcvideo completion SHELL)"` runs."""
    if shell == "fish":
        return _FISH
    return _BASH if shell == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{_BASH}"


def candidates(line: str, *, commands: Sequence[str]) -> list[str]:
    """Return whole words that the last word of a command line may become.

    Args:
        line: from `arcvideo` to the cursor.
        commands: words that may stand behind `arcvideo`.
    """
    _, *words = line.split(" ")
    words = [word for word in words[:-1] if word] + words[-1:]
    if len(words) < 2:
        return _fitting(commands, words)
    return _fitting(_offered(words[0], words=words[1:]), words)


def _fitting(offered: Sequence[str], words: Sequence[str]) -> list[str]:
    last = words[-1] if words else ""
    return [word for word in offered if word.startswith(last)]


def _offered(command: str, *, words: Sequence[str]) -> list[str]:
    """Return everything that could be typed, whatever its beginning."""
    if command == "completion":
        return list(SHELLS)
    if command == "shards":
        return list(_SHARDS)
    if command in _WORDS:
        module, kind = _WORDS[command]
        return [f"{field.name}=" for field in fields(getattr(importlib.import_module(module), kind))]
    return list(_hydra(command, words=words)) if command in _HYDRA else []


def _hydra(command: str, *, words: Sequence[str]) -> Iterator[str]:
    from arcvideo.composing.overrides import folders, options, setting_keys, stages

    key, equals, _ = words[-1].partition("=")
    among = folders(words)
    groups = sorted({path.name for folder in among for path in folder.iterdir() if path.is_dir()} - {"hydra"})
    if not equals:
        yield from _OWN.get(command, ())
        yield from ("recipe=",) if command != "train" else ()
        yield from (f"{group}=" for group in groups if group != "stage" or command == "train")
        yield from (f"{name}=" for name in setting_keys() if name not in groups)
    elif key == "recipe":
        from arcvideo.composing.recipe import recipe_names

        yield from (f"recipe={name}" for name in recipe_names())
    elif key == "stale":
        yield from (f"stale={policy}" for policy in ("refuse", "rerun", "keep"))
    elif key == "gates":
        yield from ("gates=stop", "gates=pass")
    elif key == "stage":
        yield from (f"stage={name}" for name in (*stages(words), *options("stage", among=among)))
    elif key in groups:
        yield from (f"{key}={name}" for name in options(key, among=among))
