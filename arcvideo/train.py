"""Train one stage: `python -m arcvideo.train stage=sft`, with Hydra overrides and `-m` for sweeps.

The stage starts from its parent stage's export, continues its own newest checkpoint, and is finished when its
manifest is written. A finished stage is not trained again. Settings are checked before torch is imported.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from arcvideo.compose import grammar_problems
from arcvideo.config import CONF_DIR, ConfigError, RunConfig, as_overrides, override_problems, plain_dict, typed
from arcvideo.lineage.lock import agreed, alone_in, launch
from arcvideo.lineage.manifest import finished, read_manifest
from arcvideo.lineage.parents import Parent, resolve_parent
from arcvideo.lineage.state import State, state_of, wanted
from arcvideo.plugins import in_submitit, join_job, option_of, plugin_problems, queue_again, sweep_words
from arcvideo.runner.terminal import one_voice
from arcvideo.sweep import SweepJob, first_config, lower_is_better, report_sweep, sweep_folder, train_parents


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
        if config.train_parents:
            train_parents(config, overrides=list(hydra_now.overrides.task))
        rank, ranks, launched = launch()
        with one_voice(config.stage_dir, rank=rank, ranks=ranks, job=launched):
            value = _run(config)
        if job is not None:
            job.done(value, error=_unmeasured(config) if job.optimizing and value is None else "")
        return value
    except ValueError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        if job is None:
            sys.exit(f"error: {error}")
        # The other jobs of a sweep go on; the table says what became of this one.
        job.done(None, error=str(error))
        print(f"error: {error}", file=sys.stderr, flush=True)
        return None
    except SystemExit as stop:
        queue_again(stop.code)
        if job is None or not in_submitit():
            raise
        # A job that only ends would leave its launcher without an answer.
        job.done(None, error=f"ended with {stop.code}; see the output of the job")
        return None


def _unmeasured(config: RunConfig) -> str:
    """Why a finished stage has no value to compare."""
    name = config.evaluation.optimize
    why = "" if config.evaluation.shards else "; evaluation.shards is empty, evaluation.optimize=train/loss needs none"
    return f"evaluation.optimize={name} was not measured{why}"


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
    )
    _find_shards(config)
    rank, ranks, job = launch()
    with alone_in(config.stage_dir) if rank == 0 else nullcontext():
        if config.verify_resume:
            from arcvideo.verify import verify_resume

            sys.exit(0 if verify_resume(config, parent=parent) else 1)
        state = state_of(config.stage_dir, asked=wanted(plain_dict(config), parent=parent.identity))
        if ranks == 1:
            return _act(config, parent=parent, state=state, word=state.word)
        # Rank 0 may have waited for the lock; what the others see meanwhile is out of date.
        with agreed(config.stage_dir, rank=rank, job=job, word=state.word) as word:
            return _act(config, parent=parent, state=state, word=word)


def _act(config: RunConfig, *, parent: Parent, state: State, word: str) -> float | None:
    """Do what the state asks for.

    Args:
        state: as this rank sees it.
        word: what all ranks go by.
    """
    if word == "finished":
        manifest = state.manifest or read_manifest(config.stage_dir)
        print(f"{config.stage_dir}: finished already ({manifest.identity[:8]})", flush=True)
        return manifest.value(config.evaluation.optimize)
    if word == "stale":
        raise ValueError(
            f"{config.stage_dir} holds this stage as something else than is asked for now: "
            f"{'; '.join(state.reasons)}. Give another output=NAME, or remove the folder"
        )
    from arcvideo.stage import measure_stage, run_stage

    work = measure_stage if word == "unmeasured" else run_stage
    try:
        work(config, parent=parent)
    except (ValueError, OSError) as error:
        # One line is for whoever set something wrong; where it came from is for whoever looks closer.
        raise ValueError(f"{_told(error, folder=config.stage_dir)}{_traced(config.stage_dir)}") from error
    done = finished(config.stage_dir)
    return done.value(config.evaluation.optimize) if done else None


def _told(error: ValueError | OSError, *, folder: Path) -> str:
    """The error in one line; what the operating system says names a file where it knows it, and the remedy."""
    if isinstance(error, ValueError) or error.strerror is None:
        return str(error) or type(error).__name__
    where = error.filename or folder
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"{where}: {error.strerror}{'; make room, then the same command continues' if full else ''}"


def _traced(folder: Path) -> str:
    """Write the traceback of the error that is handled now; where it is, or nothing on a disk that takes no more."""
    trace = folder / f"error-{os.environ.get('RANK', '0')}.txt"
    try:
        trace.parent.mkdir(parents=True, exist_ok=True)
        trace.write_text(traceback.format_exc())
    except OSError:
        return ""
    return f" (traceback in {trace})"


def _find_shards(config: RunConfig) -> None:
    """Raise ValueError, naming the key, for shards that are not there."""
    from arcvideo.shards.expand import expand_shards

    wanted = {f"data.sources.{name}": source.shards for name, source in config.data.sources.items()}
    if config.evaluation.shards:
        wanted["evaluation"] = config.evaluation.shards
    for key, shards in wanted.items():
        try:
            expand_shards(shards, cache=config.data.shard_cache, fetch=False)
        except ValueError as error:
            out = f"leave it out with '~{key if key != 'evaluation' else 'evaluation.shards'}'"
            remedy = f"set data_dir or the key, {out}, or make TinyShorts with `python -m arcvideo.synthetic --out DIR`"
            raise ValueError(f"{key}.{error}; {remedy}") from None


_HELP = f"""{__doc__}
Stages: audio_warmup, pretrain, sft, cold_start, grpo, final_sft.

  python -m arcvideo.train stage=sft --help                every setting of that stage
  python -m arcvideo.train stage=sft runner.steps=50       another length
  python -m arcvideo.train stage=sft verify_resume=40      proves that a resumed run has the same bits
  python -m arcvideo.train -m stage=sft runner.seed=0,1,2  a sweep: parents are trained once, each job has its folder
  python -m arcvideo.train -m hydra/launcher=submitit_local stage=sft runner.seed=0,1,2   its jobs as processes
  python -m arcvideo.train -m hydra/sweeper=optuna stage=sft 'optimizer.lr=interval(1e-4,1e-2)'
                                                           a search for the best evaluation.optimize"""


def main() -> None:
    """Check the overrides, then hand over to Hydra."""
    words = sys.argv[1:]
    if {"-h", "--help"} & set(words) and not any(word.startswith("stage=") for word in words):
        print(_HELP)  # Hydra's own help composes the settings, which needs a stage
        return
    # Python's parser of arguments refuses overrides on both sides of a flag.
    flags = ("-m", "--multirun")
    # Hydra shows settings of single runs only.
    sweep = [word for word in words if word in flags and not {"--cfg", "--help", "--info"} & set(words)]
    words = sweep + [
        word for word in words if word not in flags and not word.startswith(("--local_rank", "--local-rank"))
    ]
    _refuse(plugin_problems(sys.argv[1:]) + (override_problems(sys.argv[1:]) or grammar_problems(sys.argv[1:])))
    shown = any(word.startswith("-") and word not in sweep for word in words)
    sys.argv[1:] = as_overrides(words)
    if shown or not any(word.startswith("stage=") for word in words):
        train()  # Hydra shows what was asked for, or which stages there are
        return
    try:
        first = first_config(words)
    except ConfigError as error:
        _refuse(str(error).splitlines())
        return
    if not sweep:
        train()
        return
    folder = sweep_folder(words, config=first)
    sys.argv += sweep_words(words, lower_is_better=lower_is_better(first.evaluation.optimize))
    sys.argv.append(f"hydra.sweep.dir={folder}")
    if option_of("hydra/launcher", words) != "basic":
        print(f"output of the jobs: {folder}/.submitit/*/*_log.*", flush=True)
    train()
    if not report_sweep(folder):
        sys.exit(1)


def _refuse(problems: list[str]) -> None:
    """Exit with what is wrong, which rank 0 says; go on if nothing is."""
    if problems:
        sys.exit(1 if launch()[0] else "\n".join(f"error: {problem}" for problem in problems))


if __name__ == "__main__":
    main()
