"""Train one stage: `python -m arcvideo.train stage=sft`, with Hydra overrides and `-m` for sweeps.

The stage starts from its parent stage's export, continues its own newest checkpoint, and is finished when its
manifest is written. Settings are checked before torch is imported.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from arcvideo.config import CONF_DIR, ConfigError, RunConfig, as_overrides, override_problems, typed


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def train(composed: DictConfig) -> float | None:
    """Run the composed stage; returns the metric that sweeps optimise."""
    try:
        config = typed(composed)
        from arcvideo.lineage.parents import resolve_parent

        parent = resolve_parent(
            run_dir=Path(config.run_dir),
            stage=config.stage.name,
            parent=config.stage.parent,
            base=Path(config.base),
            override=Path(config.parent) if config.parent else None,
        )
        _find_shards(config)
    except (ConfigError, ValueError) as error:
        sys.exit(f"error: {error}")
    from arcvideo.stage import run_stage

    return run_stage(config, parent=parent)


def _find_shards(config: RunConfig) -> None:
    """Raise ValueError, naming the key, for shards that are not there."""
    from arcvideo.data.members import expand_shards

    wanted = {f"data.sources.{name}": source.shards for name, source in config.data.sources.items()}
    if config.evaluation.shards:
        wanted["evaluation"] = config.evaluation.shards
    for key, shards in wanted.items():
        try:
            expand_shards(shards)
        except ValueError as error:
            remedy = "set data_dir or the key, or make TinyShorts with `python -m arcvideo.synthetic --out DIR`"
            raise ValueError(f"{key}.{error}; {remedy}") from None


_HELP = f"""{__doc__}
Stages: audio_warmup, pretrain, sft, cold_start, grpo, final_sft.

  python -m arcvideo.train stage=sft --help            every setting of that stage
  python -m arcvideo.train stage=sft runner.steps=50   another length
  python -m arcvideo.train -m stage=sft runner.seed=0,1,2"""


def main() -> None:
    """Check the overrides, then hand over to Hydra."""
    words = sys.argv[1:]
    if {"-h", "--help"} & set(words) and not any(word.startswith("stage=") for word in words):
        print(_HELP)  # Hydra's own help composes the settings, which needs a stage
        return
    # Python's parser of arguments refuses overrides on both sides of a flag.
    sweep = [word for word in words if word in ("-m", "--multirun")]
    sys.argv[1:] = sweep + [word for word in words if word not in sweep]
    problems = override_problems(sys.argv[1:])
    if problems:
        sys.exit("\n".join(f"error: {problem}" for problem in problems))
    sys.argv[1:] = as_overrides(sys.argv[1:])
    train()


if __name__ == "__main__":
    main()
