"""What W&B has of a run that was killed, and whether it can be reached: read as wandb itself reads it."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

_BLOCK, _FILE_HEAD, _PIECE_HEAD = 32768, 7, 7
_FULL, _LAST = 1, 4


def has_key() -> bool:
    """Return whether wandb would find a key for the server it would talk to, a self-hosted one included."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        import wandb
        from wandb.sdk.lib.wbauth.wbnetrc import read_netrc_auth

        return bool(read_netrc_auth(host=os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url))
    except Exception:
        return False  # a key of the wrong form; whoever asked is told that there is none


def last_sent(folder: Path, *, run_id: str) -> int:
    """Return the last step in a run's files below a stage's folder; -1 when they hold none.

    W&B's own process writes them some seconds behind the loop, so a kill costs them steps that metrics.jsonl has.
    """
    from wandb.proto import wandb_internal_pb2

    last = -1
    for file in folder.glob(f"wandb/*run-*-{run_id}/run-{run_id}.wandb"):
        for message in _messages(file.read_bytes()):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(message)
            if record.HasField("history"):
                steps = [item.value_json for item in record.history.item if _name(item) == "_step"]
                last = max([last, record.history.step.num, *(int(json.loads(step)) for step in steps)])
    return last


def _name(item: object) -> str:
    key, nested = getattr(item, "key", ""), getattr(item, "nested_key", ())
    return str(key or ".".join(nested))


def _messages(data: bytes) -> Iterator[bytes]:
    """Yield what a file holds: LevelDB's log format behind a head of its own; a piece that was cut off ends it."""
    place, whole = _FILE_HEAD, b""
    while place + _PIECE_HEAD <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _PIECE_HEAD:  # too little for a head: zeros up to the next block
            place += left
            continue
        size, kind = struct.unpack_from("<HB", data, place + 4)
        piece = data[place + _PIECE_HEAD : place + _PIECE_HEAD + size]
        if kind == 0 or len(piece) < size:
            return
        whole, place = whole + piece, place + _PIECE_HEAD + size
        if kind in (_FULL, _LAST):
            yield whole
            whole = b""
