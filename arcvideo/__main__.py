"""The command `arcvideo`, also `python -m arcvideo`: one word for each thing that can be done."""

from __future__ import annotations

import ast
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import arcvideo
from arcvideo.composing.completion import SHELLS, candidates, script
from arcvideo.places import words_from_home
from arcvideo.processes.command import as_command
from arcvideo.structured import nearest


@dataclass(frozen=True, kw_only=True)
class Command:
    """What a word after `arcvideo` runs."""

    module: str
    """Its module, which has a `main`."""
    about: str
    """One line for the list."""
    documented: bool = False
    """Whether its help is the module's docstring, which is read without importing what the command needs."""


COMMANDS = {
    "train": Command(
        module="arcvideo.train", documented=True, about="train one stage: arcvideo train stage=sft; -m sweeps"
    ),
    "pipeline": Command(
        module="arcvideo.pipeline", documented=True, about="run a recipe: arcvideo pipeline recipe=tiny_shorts"
    ),
    "preflight": Command(
        module="arcvideo.preflight.__main__", documented=True, about="what a recipe needs, before anything is loaded"
    ),
    "evaluate": Command(
        module="arcvideo.evaluate", about="measure a checkpoint: evaluate checkpoint=DIR bench=NAME data=DIR"
    ),
    "ask": Command(module="arcvideo.ask", about="ask a checkpoint about a video"),
    "sample": Command(module="arcvideo.rejection.sample", about="draw answers and keep the right ones as shards"),
    "shards": Command(
        module="arcvideo.data.shards", documented=True, about="import, index, verify, inspect and count shards"
    ),
    "verify": Command(
        module="arcvideo.verify", documented=True, about="check that runs, weights and data are as they were written"
    ),
    "report": Command(module="arcvideo.report.__main__", about="write the page of a pipeline's runs"),
    "settings": Command(
        module="arcvideo.composing.reference", documented=True, about="every setting with its meaning, as Markdown"
    ),
    "torchrun": Command(module="arcvideo.torchrun", about="one stage on several devices"),
    "synthetic": Command(module="arcvideo.synthetic.__main__", about="generate TinyShorts"),
    "model": Command(
        module="arcvideo.model.disk.parts",
        documented=True,
        about="arcvideo model assemble: base weights of a family from public parts",
    ),
    "parts": Command(
        module="arcvideo.model.disk.parts",
        documented=True,
        about="base weights from a language model and a Whisper encoder",
    ),
}
"""Word -> command; those whose module this version has are listed."""


def commands() -> dict[str, Command]:
    """Return the commands whose module is there."""
    return {name: command for name, command in COMMANDS.items() if _file(command).is_file()}


def _file(command: Command) -> Path:
    return Path(__file__).parent / f"{command.module.removeprefix('arcvideo.').replace('.', '/')}.py"


def help_text() -> str:
    """Return the list of commands."""
    rows = "\n".join(f"  {name:<12}{command.about}" for name, command in commands().items())
    return (
        f"usage: arcvideo COMMAND ...\n\n{rows}\n\n"
        "`arcvideo COMMAND --help` has the words of each. Settings are words key=value.\n"
        f'Completion: eval "$(arcvideo completion bash)" ({", ".join(SHELLS)}). Version {arcvideo.__version__}.'
    )


def main() -> NoReturn:
    """Run the command that the first word names, and exit."""
    as_command(_run)


def _run() -> None:
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(help_text())
        return
    name, *rest = words
    if name == "--version":
        print(arcvideo.__version__)
    elif name == "completion":
        _completion(rest)
    elif name == "--complete":
        print("\n".join(candidates(" ".join(rest), commands=list(commands()))))
    elif name not in commands():
        names = list(commands())
        sys.exit(f"error: {name}: no such command{nearest(name, names)}; there are: {', '.join(names)}")
    elif rest in (["-h"], ["--help"]) and COMMANDS[name].documented:
        print(ast.get_docstring(ast.parse(_file(COMMANDS[name]).read_text(encoding="utf-8"))))
    else:
        sys.argv = [f"arcvideo {name}", *words_from_home(rest)]
        sys.exit(importlib.import_module(commands()[name].module).main())


def _completion(rest: list[str]) -> None:
    """Print the code that a shell runs to complete the command."""
    shell = rest[0] if rest else "bash"
    if shell not in SHELLS:
        sys.exit(f"error: completion {shell}: choose one of {', '.join(SHELLS)}")
    print(script(shell))


if __name__ == "__main__":
    main()
