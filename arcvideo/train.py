"""Train one stage: `python -m arcvideo.train stage=sft`, with Hydra overrides and `-m` for sweeps.

The stage starts from its parent stage's export, continues its own newest checkpoint, and is finished when its
manifest is written. Settings are checked before torch is imported.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from arcvideo.config import CONF_DIR, ConfigError, as_overrides, override_problems, typed


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
    except (ConfigError, ValueError) as error:
        sys.exit(f"error: {error}")
    from arcvideo.stage import run_stage

    return run_stage(config, parent=parent)


def main() -> None:
    """Check the overrides, then hand over to Hydra."""
    problems = override_problems(sys.argv[1:])
    if problems:
        sys.exit("\n".join(f"error: {problem}" for problem in problems))
    sys.argv[1:] = as_overrides(sys.argv[1:])
    train()


if __name__ == "__main__":
    main()
