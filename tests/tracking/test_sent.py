"""What W&B lacks after a kill is sent from metrics.jsonl, and keys are found where wandb finds them."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcvideo.tracking.metrics import WandbMirror, _wandb_mode
from arcvideo.tracking.sent import last_sent
from arcvideo.tracking.settings import LoggerSettings
from tests.test_wandb import records

KEY = "0" * 40


@pytest.fixture
def no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without any key."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("place", [".netrc", "keys/elsewhere"])
def test_the_key_of_a_self_hosted_server_is_found(no_key: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    file = no_key / place
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"machine wandb.mycorp.com login user password {KEY}\n")
    file.chmod(0o600)
    if place != ".netrc":
        monkeypatch.setenv("NETRC", str(file))
    assert _wandb_mode("online") == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.mycorp.com")
    assert _wandb_mode("online") == "online"


def test_a_token_file_is_a_key_and_words_of_the_mode_are_checked(
    no_key: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", str(no_key / "token"))
    assert _wandb_mode("online") == "online"
    for word, mode in (("dryrun", "offline"), ("run", "online"), ("disabled", "disabled"), ("", "online")):
        monkeypatch.setenv("WANDB_MODE", word)
        assert _wandb_mode("online") == mode
    monkeypatch.setenv("WANDB_MODE", "OFLINE")
    assert _wandb_mode("online") == "offline"
    assert "WANDB_MODE='OFLINE' is none of online, run, offline" in capsys.readouterr().err


@pytest.mark.slow
def test_steps_that_a_kill_kept_from_wandb_are_sent_from_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "shorts" / "sft"
    folder.mkdir(parents=True)
    rows = [{"step": step, "train/loss": float(step)} for step in range(6)]
    settings = LoggerSettings(wandb="offline")
    assert last_sent(folder, run_id="abcd1234") == -1
    first = WandbMirror(settings, folder=folder, name="n", config={}, run_id="abcd1234")
    for row in rows[:2]:
        first.write(row)
    first.close()
    assert last_sent(folder, run_id="abcd1234") == 1
    # Steps 2 and 3 were trained and are in metrics.jsonl, but the kill came before W&B had them.
    again = WandbMirror(settings, folder=folder, name="n", config={}, run_id="abcd1234", past=rows[:4])
    for row in rows[4:]:
        again.write(row)
    again.close()
    assert steps(folder) == [0, 1, 2, 3, 4, 5]


@pytest.mark.slow
def test_steps_that_wandb_has_and_a_resumed_run_does_again_are_there_once(tmp_path: Path) -> None:
    folder = tmp_path / "shorts" / "sft"
    folder.mkdir(parents=True)
    rows = [{"step": step, "train/loss": float(step), "time/step": 1.0} for step in range(6)]
    settings = LoggerSettings(wandb="offline")
    # The kill came three steps after the last checkpoint, and W&B had them all.
    for start, end in ((0, 4), (1, 6)):
        run = WandbMirror(settings, folder=folder, name="n", config={}, run_id="abcd1234", past=rows[:start])
        for row in rows[start:end]:
            run.write(row)
        run.close()
    assert steps(folder) == [0, 1, 2, 3, 4, 5]


def steps(folder: Path) -> list[int]:
    """Steps in the W&B files of a stage."""
    items = [item for record in records(folder) if record.HasField("history") for item in record.history.item]
    return [int(item.value_json) for item in items if "_step" in (item.key, *item.nested_key)]
