"""Where a stage stands: not begun, interrupted, finished, or finished as something else than what is asked for now."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arcvideo.hidden import recorded
from arcvideo.lineage.code import code_diff, evaluation_code, training_code
from arcvideo.lineage.continued import continued_seal
from arcvideo.lineage.identity import chooses, config_diff, diff_text, evaluation_digest, identity, relevant
from arcvideo.lineage.manifest import EXPORT_NAME, Manifest, finished
from arcvideo.lineage.started import newest_checkpoint, read_started, record_start
from arcvideo.objectives import objective_row
from arcvideo.remote.settings import ShardCacheSettings
from arcvideo.seals import Damaged, check_sizes, digest_of
from arcvideo.shards.expand import expand_shards
from arcvideo.shards.index import content_digest, open_index


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for now."""

    stage: str
    """Its name."""
    config: dict[str, Any]
    """Resolved settings; credentials are in them, so they are compared and hashed, not written."""
    parent: str
    """Identity of the parent, or digest of the base weights."""
    data: str | None
    """Digest of the data; None when some shard is not there or not indexed."""
    code: dict[str, str] = field(default_factory=dict)
    """Module -> digest."""
    continued: str = ""
    """Seal of the checkpoint that it goes on from; empty without `continue_from`."""
    held_out: str | None = ""
    """Digest of the held-out shards where they choose the weights, else empty; None when some are not there."""

    @property
    def identity(self) -> str | None:
        """None when the data are not known."""
        if self.data is None or self.held_out is None:
            return None
        start = digest_of([self.parent, self.continued]) if self.continued else self.parent
        start = digest_of([start, self.held_out]) if self.held_out else start
        return identity(config=self.config, data=self.data, parent=start, code=self.code)

    @property
    def evaluation(self) -> str:
        """Digest of how it is to be measured."""
        settings = self.config["evaluation"]
        return evaluation_digest(settings, code=evaluation_code(metrics=settings.get("metrics") or ()))


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a stage stands."""

    word: str
    """new, interrupted, finished, unmeasured (trained, but the evaluation has changed), stale or unknown."""
    reasons: tuple[str, ...] = ()
    """One line each: what differs from what is asked for now."""
    manifest: Manifest | None = None
    """Of the finished stage."""
    step: int = 0
    """Of the newest checkpoint of an interrupted one."""


def wanted(config: Mapping[str, Any], *, parent: str) -> Wanted:
    """Return what is asked for by resolved settings.

    Args:
        config: `config.plain_dict` of the run.
        parent: identity of its parent.
    """
    stage = config["stage"]
    feed = stage.get("feed", "")
    grpo = config["grpo"] if objective_row(stage["objective"], feed=feed).sampled else {}
    rewards = [*grpo.get("rewards", ()), *(name for own in grpo.get("task_rewards", {}).values() for name in own)]
    code = training_code(objective=stage["objective"], feed=feed, rewards=rewards, sampler=grpo.get("sampler", ""))
    held_out: str | None = ""
    if chooses(config):
        measuring = evaluation_code(metrics=config["evaluation"]["metrics"])
        code = dict(sorted((code | measuring).items()))
        source = {"held_out": {"shards": config["evaluation"]["shards"]}}
        held_out = _data_digest({**config["data"], "sources": source})
    return Wanted(
        stage=stage["name"],
        config=dict(config),
        parent=parent,
        data=_data_digest(config["data"]),
        continued=continued_seal(config),
        code=code,
        held_out=held_out,
    )


def state_of(folder: Path, *, expected: Wanted) -> State:
    """Return where the stage in `folder` stands, compared with what is asked for."""
    try:
        manifest = finished(folder)
    except ValueError as error:
        return State(word="stale", reasons=(str(error),))
    if manifest is not None:
        return _finished(folder, manifest=manifest, expected=expected)
    newest = newest_checkpoint(folder / "checkpoints")
    if newest is None:
        return State(word="new")
    step = int(newest.name[5:])
    try:
        began = read_started(folder)
    except ValueError as error:  # the checkpoint has its own word on what it belongs to
        print(error, file=sys.stderr)
        began = None
    if began is None:
        return State(word="interrupted", step=step)
    reasons = differences(began, expected=expected)
    return State(word="stale" if reasons else "interrupted", reasons=reasons, step=step)


def _finished(folder: Path, *, manifest: Manifest, expected: Wanted) -> State:
    if expected.identity is None:
        return State(word="unknown", reasons=("its shards are not there or not indexed",), manifest=manifest)
    if manifest.identity != expected.identity:
        reasons = differences(vars(manifest), expected=expected) or ("its identity",)
        return State(word="stale", reasons=reasons, manifest=manifest)
    if not (folder / EXPORT_NAME / "config.json").exists():
        return State(word="stale", reasons=(f"{folder / EXPORT_NAME} is gone",), manifest=manifest)
    try:
        check_sizes(folder / EXPORT_NAME, manifest.exported)
    except (Damaged, OSError) as error:
        return State(word="stale", reasons=(f"its export is damaged: {error}",), manifest=manifest)
    if manifest.evaluation != expected.evaluation:
        diff = config_diff(_group(manifest.config, "evaluation"), _group(recorded(expected.config), "evaluation"))
        lines = tuple(f"evaluation.{line.strip()}" for line in diff_text(diff).splitlines())
        return State(word="unmeasured", reasons=lines or ("evaluation: its code",), manifest=manifest)
    return State(word="finished", manifest=manifest)


def refusal(folder: Path, *, state: State, most: int = 8) -> str:
    """Return in one line why a stale stage is refused and what can be done; a stage of another name is told first."""
    reasons = sorted(state.reasons, key=lambda reason: not reason.startswith("stage."))
    more = f" and {len(reasons) - most} more" if len(reasons) > most else ""
    there = newest_checkpoint(folder / "checkpoints") is not None
    goes_on = f" with continue_from={folder} to go on from its newest checkpoint," if there else ""
    return (
        f"{folder} holds this stage as something else than is asked for now: {'; '.join(reasons[:most])}{more}. Give "
        f"another output=NAME,{goes_on} or remove the folder"
    )


def differences(then: Mapping[str, Any], *, expected: Wanted) -> tuple[str, ...]:
    """Return what has changed since `then` (fields of a manifest or of started.json), one line each."""
    try:
        diff = config_diff(relevant(then["config"]), relevant(recorded(expected.config)))
        changed = code_diff(then["code"], expected.code)
        data, parent = then["data"], str(then["parent"])
        continued = str((then.get("continued") or {}).get("seal", ""))
    except (AttributeError, KeyError, TypeError, ValueError):
        # Settings of another version, or of somebody else's making.
        return ("what it was made with cannot be read",)
    lines = [line.strip() for line in diff_text(diff).splitlines()]
    if expected.data is not None and data != expected.data:
        lines.append("data: other shards, or other content in them")
    if parent != expected.parent:
        lines.append(f"parent: {parent[:8]} -> {expected.parent[:8]}")
    if continued != expected.continued:
        lines.append("continue_from: another checkpoint, or none")
    if changed:
        lines.append(f"code: {', '.join(changed[:6])}{f' and {len(changed) - 6} more' if len(changed) > 6 else ''}")
    return tuple(lines)


def _group(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    group = config.get(name)
    return group if isinstance(group, Mapping) else {}


def write_started(folder: Path, *, expected: Wanted) -> None:
    """Write started.json of a stage that begins now, so that a stopped run, too, can say what has changed."""
    content = {
        "config": recorded(expected.config),
        "data": expected.data,
        "parent": expected.parent,
        "code": expected.code,
    }
    record_start(folder, content | {"continued": {"seal": expected.continued}})


def _data_digest(data: Mapping[str, Any]) -> str | None:
    """Return digest of all sources from their indexes; None when one is missing or stale."""
    cache = ShardCacheSettings(**data.get("shard_cache", {}))
    sources: list[tuple[str, Sequence[Any]]] = []
    for name, source in data["sources"].items():
        try:
            shards = expand_shards(source["shards"], cache=cache, fetch=False)
            indexes = [open_index(shard, place=data.get("index_dir") or "") for shard in shards]
        except ValueError:
            return None
        if any(index is None for index in indexes):
            return None
        sources.append((name, indexes))
    return content_digest(sources)
