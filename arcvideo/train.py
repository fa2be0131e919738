"""Train one stage: `arcvideo train stage=sft`, with Hydra overrides and `-m` for sweeps.

The stage starts from its parent stage's export, continues its own newest checkpoint, and is finished when its
manifest is written. A finished stage is not trained again. Settings are checked before torch is imported.

Stages: audio_warmup, pretrain, sft, cold_start, grpo, final_sft, of model=tiny or model=arc_hunyuan_7b.

  arcvideo train stage=sft --help                every setting of that stage
  arcvideo train stage=sft runner.steps=50       another length
  arcvideo train stage=sft verify_resume=40      proves that a resumed run has the same bits
  arcvideo train -m stage=sft runner.seed=0,1,2  a sweep: parents are trained once, each job has its folder
  arcvideo train -m hydra/launcher=submitit_local stage=sft runner.seed=0,1,2   its jobs as processes
  arcvideo train -m hydra/sweeper=optuna stage=sft 'optimizer.lr=interval(1e-4,1e-2)'
                                                 a search for the best evaluation.optimize
  arcvideo train --config-dir conf stage=mine    options of your own; +experiment=NAME, hydra.searchpath=[file://conf]

`python -m arcvideo.train` is the same command.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError

from arcvideo.composing.compose import shown_text, stage_config
from arcvideo.composing.config import ConfigError, RunConfig, plain_dict, recorded_settings, typed
from arcvideo.composing.ending import Ended, forget_errors, refusals, traced
from arcvideo.composing.grammar import quoted
from arcvideo.composing.overrides import (
    LAUNCHERS_WORDS,
    agent_words,
    as_overrides,
    beside,
    flag_value,
    grammar_problems,
    merge_notes,
    override_problems,
    settings_words,
    with_search,
)
from arcvideo.composing.plugins import in_submitit, join_job, option_of, plugin_problems, queue_again, sweep_words
from arcvideo.composing.sweep import (
    PLACED,
    SWEPT,
    SweepJob,
    first_words,
    lower_is_better,
    report_sweep,
    sweep_folder,
    swept_keys,
    train_parents,
)
from arcvideo.files import error_line
from arcvideo.hidden import hidden
from arcvideo.lineage.continued import continue_problems, continued_from
from arcvideo.lineage.lock import agreed, alone_in, launch
from arcvideo.lineage.manifest import finished, read_manifest
from arcvideo.lineage.parents import Parent, resolve_parent
from arcvideo.lineage.state import State, refusal, state_of, wanted
from arcvideo.places import CONF_DIR, no_place, writable
from arcvideo.processes.activity import note
from arcvideo.processes.children import end_with_parent
from arcvideo.processes.command import INTERRUPT_EXIT_CODE, as_command, say_interrupted
from arcvideo.processes.lifesign import signs_of_life
from arcvideo.processes.terminal import one_voice
from arcvideo.report.closing import closing_text

REFUSAL_SECONDS = 10.0
"""How long the other ranks keep still when settings are refused; a launcher ends them as soon as rank 0 has spoken."""


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def train(composed: DictConfig) -> float | None:
    """Run the composed stage; returns the metric that sweeps optimise."""
    job = None
    try:
        join_job()
        config = typed(composed)
        hydra_now = HydraConfig.get()
        job = SweepJob.of(hydra_now, config=config)
        if job is not None:
            config = job.config
            job.hide()
        if config.train_parents:
            train_parents(config, overrides=list(hydra_now.overrides.task), chosen=hydra_now.runtime.choices)
        rank, ranks, launched = launch()
        if ranks > 1:
            end_with_parent()  # a launcher that is killed cannot end its ranks
        patience = config.runner.hang_seconds
        with one_voice(config.stage_dir, rank=rank, ranks=ranks, job=launched, patience=patience):
            value = _run(config)
        if job is not None:
            job.done(value, error=_unmeasured(config) if job.optimizing and value is None else "")
        return value
    except (ValueError, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        line = error_line(error, folder=Path(str(composed.get("run_dir", "."))), key="run_dir")
        if job is not None:
            # The other jobs of a sweep go on; the table says what became of this one.
            job.done(None, error=line)
            print(f"error: {line}", file=sys.stderr, flush=True)
        raise Ended(1, message=f"error: {line}") from error
    except SystemExit as stop:
        queue_again(stop.code)
        if job is None or not in_submitit():
            raise Ended(stop.code) from stop
        # A job that only ends would leave its launcher without an answer.
        why = f"ended with {stop.code}; see the output of the job"
        job.done(None, error=why)
        raise Ended(stop.code, message=why) from stop


def _unmeasured(config: RunConfig) -> str:
    """Return why a finished stage has no value to compare."""
    return f"evaluation.optimize={config.evaluation.optimized} was not measured"


def _run(config: RunConfig) -> float | None:
    """Train or measure what is not done yet, alone in the stage's folder.

    Raises:
        ValueError: it cannot run, or stands there as something else.
    """
    parent = resolve_parent(
        run_dir=Path(config.run_dir),
        stage=config.stage.name,
        parent=config.stage.parent,
        base=Path(config.base),
        override=Path(config.parent) if config.parent else None,
        make=f"python -m arcvideo.train stage={_beside(config)} run_dir={config.run_dir}",
    )
    rank, ranks, job = launch()
    _check_places(config, shards=_find_shards(config), ranks=ranks)
    if config.continue_from:
        checkpoint, settings = continued_from(config.continue_from), plain_dict(config)
        for wrong in continue_problems(checkpoint, config=settings, stage_dir=config.stage_dir, parent=parent.identity):
            raise ValueError(wrong)
    with alone_in(config.stage_dir) if rank == 0 else nullcontext():
        if config.verify_resume:
            from arcvideo.verify_resume import verify_resume

            sys.exit(0 if verify_resume(config, parent=parent) else 1)
        state = state_of(config.stage_dir, expected=wanted(plain_dict(config), parent=parent.identity))
        if ranks == 1:
            return _act(config, parent=parent, state=state, word=state.word)
        # Rank 0 may have waited for the lock; what the others see meanwhile is out of date.
        with agreed(config.stage_dir, rank=rank, job=job, word=state.word) as word:
            return _act(config, parent=parent, state=state, word=word)


def _beside(config: RunConfig) -> str:
    """Return how the parent stage is chosen: a page of the same model."""
    page = HydraConfig.get().runtime.choices.get("stage", "") if HydraConfig.initialized() else ""
    return beside(page, stage=config.stage.parent)


def _act(config: RunConfig, *, parent: Parent, state: State, word: str) -> float | None:
    """Do what the state asks for.

    Args:
        state: as this rank sees it.
        word: what all ranks go by.
    """
    if word == "finished":
        manifest = state.manifest or read_manifest(config.stage_dir)
        print(f"{config.stage_dir}: finished already ({manifest.identity[:8]})", flush=True)
        return manifest.value(config.evaluation.optimized)
    if word == "stale":
        raise ValueError(refusal(config.stage_dir, state=state))
    if not launch()[0]:
        doing = "is measured again" if word == "unmeasured" else "continues" if word == "interrupted" else "starts"
        print(f"{config.stage_dir}: {doing}; loading torch, weights and data", flush=True)
    if word != "unmeasured":
        _record(config.stage_dir)
    began = time.time()
    note("loading torch")
    try:
        with nullcontext() if launch()[0] else signs_of_life():
            _work(config, parent=parent, word=word)
    except (ValueError, OSError, SafetensorError) as error:
        # Users see one line; the traceback goes to a file.
        raise ValueError(
            f"{error_line(error, folder=config.stage_dir, key='run_dir')}{traced(config.stage_dir)}"
        ) from error
    done = finished(config.stage_dir)
    if done is not None and not launch()[0]:
        forget_errors(config.stage_dir, before=began)
        said = closing_text(config.stage_dir, steps=done.steps, seconds=done.seconds, identity=done.identity)
        print(said, flush=True)
    return done.value(config.evaluation.optimized) if done else None


def _work(config: RunConfig, *, parent: Parent, word: str) -> None:
    """Train or measure the stage; callbacks hear of it on the first rank."""
    from arcvideo.stage import measure_stage, run_stage
    from arcvideo.tracking.callbacks import calling

    first = launch()[0] == 0
    names = config.logger.callbacks if first else []
    with calling(names, folder=config.stage_dir, config=recorded_settings(config)) as callbacks:
        if word == "unmeasured":
            measure_stage(config, parent=parent)
        else:
            run_stage(config, parent=parent, callbacks=callbacks)
        done = finished(config.stage_dir) if first else None
        if done is not None and done.evaluated:
            callbacks.evaluation(done.evaluated, step=done.steps)


def _record(folder: Path) -> None:
    """Write what Hydra composed into the folder of a stage that is about to be trained, as Hydra itself lays it out.

    Hydra would do so before anybody knows whether the stage may run, over the files of a finished one.
    """
    if not HydraConfig.initialized() or HydraConfig.get().mode == RunMode.MULTIRUN or launch()[0]:
        return
    if OmegaConf.is_missing(HydraConfig.get().runtime, "output_dir"):
        return  # composed only: no job of Hydra's runs
    place = Path(HydraConfig.get().runtime.output_dir)
    if place.parent != folder.resolve():
        return  # the user said where Hydra shall write, and it did
    whole = cast(DictConfig, HydraConfig.instance().cfg)
    parts = {
        "config": OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"]),
        "hydra": OmegaConf.masked_copy(whole, ["hydra"]),
        "overrides": whole.hydra.overrides.task,
    }
    (place / ".hydra").mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        (place / ".hydra" / f"{name}.yaml").write_text(hidden(OmegaConf.to_yaml(part)), encoding="utf-8")


def _find_shards(config: RunConfig) -> dict[str, list[Path]]:
    """Return setting -> its shards.

    Raises:
        ValueError: shards are not there; the message names the key.
    """
    from arcvideo.shards.expand import expand_shards

    wanted = {f"data.sources.{name}": source.shards for name, source in config.data.sources.items()}
    if config.evaluation.shards:
        wanted["evaluation"] = config.evaluation.held_out
    paths = {}
    for key, shards in wanted.items():
        try:
            paths[key] = expand_shards(shards, cache=config.data.shard_cache, fetch=False)
        except ValueError as error:
            out = f"leave it out with '~{key if key != 'evaluation' else 'evaluation.shards'}'"
            remedy = f"set data_dir or the key, {out}, or make TinyShorts with `python -m arcvideo.synthetic --out DIR`"
            raise ValueError(f"{key}.{error}; {remedy}") from None
    return paths


def _check_places(config: RunConfig, *, shards: Mapping[str, Sequence[Path]], ranks: int) -> None:
    """Look before anything heavy is loaded whether the ranks can share the work and what is written has a place.

    Raises:
        ValueError: they cannot, or it has none; the message names the setting.
    """
    from arcvideo.shards.index import index_folder, open_index

    if config.data.packs_per_step % ranks:
        raise ValueError(f"data.packs_per_step={config.data.packs_per_step} is not a multiple of {ranks} ranks")
    place, least = config.data.index_dir or "", None
    for key, paths in shards.items():
        for path in (path for path in paths if path.exists()):  # a remote one is fetched to a cache of ours
            folder = index_folder(path, place=place).parent
            if folder != least and not writable(folder) and open_index(path, place=place) is None:
                raise ValueError(
                    f"{key}: the index of {path} cannot be written to {folder}; give another folder with "
                    "data.index_dir=DIR"
                )
            least = folder
    if wrong := no_place(config.stage_dir, run_dir=config.run_dir):
        raise ValueError(wrong)


_HYDRAS_OWN = ("--info", "-i", "--shell-completion", "-sc", "--hydra-help", "--version")
"""Flags that Hydra answers without running anything."""
_SHOWS = ("--cfg", "-c", "--help", "-h")


def main() -> None:
    """Check the overrides, then hand over to Hydra."""
    try:
        _main()
    except OSError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        _refuse([error_line(error)])
    except KeyboardInterrupt:
        say_interrupted("; the same command continues from the newest checkpoint")
        sys.exit(INTERRUPT_EXIT_CODE)


def _main() -> None:
    # Launchers of processes add words of their own; Hydra shows settings of single runs only.
    words = [word for word in sys.argv[1:] if not word.startswith(LAUNCHERS_WORDS)]
    words = agent_words(words, environment=os.environ)
    names = {word.partition("=")[0] for word in words}
    asks_help = bool({"-h", "--help"} & names)
    if asks_help and not settings_words(words):
        print(__doc__)
        return
    if names & set(_HYDRAS_OWN):
        _ask_hydra(words, names=names)
        return
    shown = bool(names & set(_SHOWS))
    _refuse(plugin_problems(words) + (override_problems(words) or grammar_problems(words)))
    try:
        if shown:
            kind = flag_value(words, "--cfg") or "job"
            text = shown_text(first_words(words), kind=kind, package=flag_value(words, "--package"))
            print(f"{__doc__}\nEvery setting of this stage:\n\n{text}" if asks_help else text, end="")
            return
        first = stage_config(first_words(words))
    except ConfigError as error:
        _refuse(str(error).splitlines())
        return
    for line in merge_notes(words, config=first) if not launch()[0] else ():
        print(f"note: {line}", file=sys.stderr, flush=True)
    sweep = bool({"-m", "--multirun"} & names)
    _refuse([wrong] if (wrong := no_place(first.stage_dir, run_dir=first.run_dir)) else [])
    # Python's parser of arguments refuses overrides on both sides of a flag.
    plain = with_search([word for word in as_overrides(words) if word not in ("-m", "--multirun")])
    with refusals(_refuse, words=plain, folder=first.stage_dir):
        if sweep:
            _sweep(plain, first=first)
            return
        sys.argv[1:] = [*plain, *_places(words, config=first)]
        train()


def _ask_hydra(words: Sequence[str], *, names: set[str]) -> None:
    """Have Hydra answer what it answers itself."""
    if names & {"--hydra-help", "--version"}:
        words = [word for word in words if word.startswith(("-", "hydra"))]
    elif not names & {"--shell-completion", "-sc"}:
        _refuse(override_problems(words))
        words = as_overrides(words)
    sys.argv[1:] = words
    train()


def _places(words: Sequence[str], *, config: RunConfig) -> list[str]:
    """Return words that keep Hydra's folder inside the stage's, unless the user said where it shall be.

    Nothing is written there before the stage may run.
    """
    given = {word.lstrip("+").partition("=")[0] for word in words}
    if given & {"hydra.run.dir", "hydra.output_subdir"}:
        return []
    return [f"hydra.run.dir={quoted(str(config.stage_dir / 'hydra'))}", "hydra.output_subdir=null"]


def _sweep(words: Sequence[str], *, first: RunConfig) -> None:
    """Run the jobs, then show their table; exit with 1 when one of them failed."""
    folder = sweep_folder(words, config=first)
    os.environ[SWEPT] = " ".join(swept_keys(words))
    os.environ[PLACED] = "1" if any(word.lstrip("+").startswith("hydra.sweep.") for word in words) else ""
    added = sweep_words(words, lower_is_better=lower_is_better(first.evaluation.optimized))
    sys.argv[1:] = ["-m", *words, *added, f"hydra.sweep.dir={quoted(str(folder))}"]
    if option_of("hydra/launcher", words) != "basic":
        print(f"output of the jobs: {folder}/.submitit/*/*_log.*", flush=True)
    train()
    if not report_sweep(folder):
        sys.exit(1)


def _refuse(problems: list[str]) -> None:
    """Exit with what is wrong, which rank 0 says; go on if nothing is."""
    if not problems:
        return
    if launch()[0]:
        # A launcher ends all ranks when the first one fails: let rank 0 speak before.
        time.sleep(REFUSAL_SECONDS)
        sys.exit(1)
    sys.exit("\n".join(f"error: {problem}" for problem in problems))


if __name__ == "__main__":
    as_command(main)
