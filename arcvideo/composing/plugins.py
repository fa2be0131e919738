"""Hydra's launchers and sweepers: what they need to be installed, and what a job does that one of them has started."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Sequence

from arcvideo.processes.signals import REQUEUE_EXIT_CODE
from arcvideo.structured import nearest

PLUGINS = {
    "hydra/launcher": dict.fromkeys(("slurm", "submitit_local", "submitit_slurm"), "hydra_submitit_launcher"),
    "hydra/sweeper": {"optuna": "hydra_optuna_sweeper"},
}
"""Group -> option -> the package of `hydra_plugins` that it comes from."""
LONGEST_MINUTES = 7 * 24 * 60
"""For jobs as local processes, which the launcher would stop after an hour."""
STOP_SIGNAL = "USR1"
"""What submitit tells a job with that its time is over: one of the signals that a run answers by saving."""


def plugin_problems(words: Sequence[str]) -> list[str]:
    """Return what keeps the launcher or sweeper in these words from working."""
    problems = []
    for word in words:
        group, equals, option = word.lstrip("+").partition("=")
        options = PLUGINS.get(group)
        if options is None or not equals or option == "basic":
            continue
        if option not in options:
            close = nearest(option, ["basic", *options])
            problems += [f"{word}: no such option{close}; there are: basic, {', '.join(options)}"] if close else []
        elif not _installed(f"hydra_plugins.{options[option]}"):
            name = options[option].replace("_", "-")
            problems.append(f"{word} needs the package {name}: pip install 'arcvideo[sweep]'")
    if problems:
        return problems
    swept = {group for word in words if (group := word.lstrip("+").partition("=")[0]) in PLUGINS}
    if swept and not {"-m", "--multirun"} & set(words):
        problems.append(f"{sorted(swept)[0]} acts in sweeps only: add -m")
    return problems


def option_of(group: str, words: Sequence[str]) -> str:
    """Return the last choice of a group in these words; `basic` when there is none."""
    chosen = [word.partition("=")[2] for word in words if word.lstrip("+").startswith(f"{group}=")]
    return chosen[-1] if chosen else "basic"


def sweep_words(words: Sequence[str], *, lower_is_better: bool) -> list[str]:
    """Return words for Hydra that follow from what is optimised and by whom; what the user said himself is left
    alone.
    """
    said = {
        "hydra.launcher.timeout_min": (option_of("hydra/launcher", words) == "submitit_local", LONGEST_MINUTES),
        "hydra.sweeper.direction": (
            option_of("hydra/sweeper", words) == "optuna",
            "minimize" if lower_is_better else "maximize",
        ),
    }
    given = {word.lstrip("+").partition("=")[0] for word in words}
    # Read by submitit where the job is handed in and, inherited, where it runs.
    os.environ.setdefault("SUBMITIT_PREEMPT_SIGNAL", STOP_SIGNAL)
    return [f"{key}={value}" for key, (needed, value) in said.items() if needed and key not in given]


def in_submitit() -> bool:
    """Return whether this process is a job, or a task of one, that submitit has started."""
    return "SUBMITIT_EXECUTOR" in os.environ


def join_job() -> None:
    """Inside a job of submitit with several tasks: tell each of them its rank, as torchrun would."""
    if not in_submitit() or "RANK" in os.environ:
        return
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    if JobEnvironment().num_tasks > 1:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


def queue_again(status: object) -> None:
    """Inside a job of submitit that saved and stopped with status 85: have submitit queue it again.

    Its own answer to the signal is back in place once the run has stopped; submitit counts timeouts, keeps the job's
    place and ends the process.
    """
    if status == REQUEUE_EXIT_CODE and in_submitit():
        name = os.environ.get("SUBMITIT_PREEMPT_SIGNAL", STOP_SIGNAL)
        signal.raise_signal(signal.Signals[f"SIG{name}"])


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False
