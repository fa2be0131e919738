"""Secrets that are planted everywhere come out nowhere, and no text of the data steers a terminal."""

from __future__ import annotations

import ast
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from arcvideo.composing.compose import shown_text
from arcvideo.composing.config import plain_dict, recorded_settings
from arcvideo.hidden import hidden, plain, recorded
from arcvideo.lineage.state import Wanted, write_started
from arcvideo.shards.write import Record, write_shards
from tests.compose import settings
from tests.conftest import SmallWorld
from tests.data import build
from tests.spawned import finished

SECRET = "planted-9f3a7c21e0"
ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"https://me:{SECRET}@host/x.tar", "https://***@host/x.tar"),
        (f"s3://{SECRET}@bucket/x", "s3://***@bucket/x"),
        (f"https://h/x?X-Amz-Signature={SECRET}&a=1", "https://h/x?X-Amz-Signature=***&a=1"),
        (f"get https://h/x?a=1&access_token={SECRET}: HTTP 403", "get https://h/x?a=1&access_token=***: HTTP 403"),
        (f"http:/me:{SECRET}@h/x?token={SECRET}: no such file", "http:/***@h/x?token=***: no such file"),
        ("https://h/{000..011}.tar", "https://h/{000..011}.tar"),
        ("mail me@host, see http://host/a@b", "mail me@host, see http://host/a@b"),
    ],
)
def test_credentials_in_urls_are_hidden_and_nothing_else_is(text: str, shown: str) -> None:
    assert hidden(text) == shown
    assert plain(text) == shown


def test_values_of_secret_variables_are_hidden_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    monkeypatch.setenv("MONKEY", "bananas-and-more")
    assert SECRET not in plain(f"error: server refused {SECRET}")
    assert plain("bananas-and-more") == "bananas-and-more"


def test_settings_from_the_environment_are_recorded_by_name_and_told_apart_by_identity(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []
    for value in (SECRET, f"{SECRET}-other"):
        monkeypatch.setenv("PLANTED", value)
        config = settings("stage=sft", "logger.project='${oc.env:PLANTED}'")
        assert config.logger.project == value
        assert recorded_settings(config)["logger"]["project"] == "${oc.env:PLANTED}"
        asked.append(Wanted(stage="sft", config=plain_dict(config), parent="0", data="1"))
        write_started(tmp_path, expected=asked[-1])
        assert SECRET not in (tmp_path / "started.json").read_text()
    monkeypatch.setenv("PLANTED", SECRET)
    assert SECRET not in shown_text(["stage=sft", "logger.project='${oc.env:PLANTED}'"], kind="job", package=None)


def test_a_url_of_a_source_is_recorded_without_its_credentials() -> None:
    told = recorded({"data": {"sources": {"a": {"shards": f"https://u:{SECRET}@h/x.tar?token={SECRET}"}}}, "n": [1, 2]})
    assert SECRET not in json.dumps(told)
    assert "h/x.tar" in json.dumps(told)


STEERING = "\x1b[31mred \x1b]0;title\x07 \x1b[2J \x9b2J over\rwritten \u202eright to left\u2066 \x08\x7f \ud83d"


@pytest.mark.parametrize("colours", [False, True])
def test_codes_that_steer_a_terminal_are_printed_as_escapes(colours: bool) -> None:
    told = plain(STEERING, colours=colours)
    rest = told.replace("\x1b[31m", "") if colours else told
    assert not any(sign < " " or "\x7f" <= sign <= "\x9f" or sign in "\u202e\u2066" for sign in rest)
    assert "red" in told
    assert "\\x1b[2J" in told
    assert plain("\r 50%|#####     | 1/2") == "\r 50%|#####     | 1/2"
    assert plain("\n\x1b[A", colours=True) == "\n\x1b[A"
    assert "\x1b" not in plain("\x1b[8mhidden\x1b[5;31m", colours=True).replace("\x1b[31m", "")


@pytest.mark.slow
def test_no_command_prints_a_code_of_the_data(tmp_path: Path) -> None:
    """Names, texts and reasons of a shard, as its commands and the check of it print them."""
    nasty = "a\x1b]0;owned\x07\x1b[31m\u202eb"
    good = {"items": build.items(0)}
    bad = {"items": [{"task": nasty, "answer": "x"}, {"task": "qa", "question": nasty, "answer": nasty}]}
    records = [Record(key=f"{nasty}{n}", content=c, media={"png": build.png()}) for n, c in enumerate((good, bad))]
    (shard,) = write_shards(records, out=tmp_path)
    (tmp_path / f"{nasty}.jsonl").write_text("{\n")
    words = [["-m", "arcvideo.data.shards", command, str(shard)] for command in ("index", "stats", "inspect")]
    words += [["-m", "arcvideo.verify", "--all", str(tmp_path)], ["-m", "arcvideo", "verify", str(tmp_path)]]
    for command in words:
        done = finished([sys.executable, *command], seconds=300, cwd=ROOT)
        said = done.stdout + done.stderr
        assert "Traceback" not in said, said
        # What moves the line of a progress bar is our own.
        assert not set("\x1b\x07\u202e") & set(said.replace("\x1b[A", "")), (command, said)
        assert "\\x1b" in said, command


OWN_OUTPUT = {"decoding/worker.py"}
"""Its parent reads what it writes, and prints it through its own."""


def test_every_command_speaks_plainly_before_it_does_anything() -> None:
    """Whatever is printed, by whichever library: so no place where a string of the data is printed can be forgotten."""
    commands = {}
    for path in sorted((ROOT / "arcvideo").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'":
                commands[path.relative_to(ROOT / "arcvideo").as_posix()] = ast.unparse(node.body[0])
    assert len(commands) > 10
    silent = {name for name, first in commands.items() if first != "as_command(main)"}
    assert silent - OWN_OUTPUT == {"__main__.py"}
    # The installed command: its function does so itself, in front of the command it was asked for.
    body = ast.parse((ROOT / "arcvideo" / "__main__.py").read_text(encoding="utf-8")).body
    (main,) = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    assert ast.unparse(main.body[-1]) == "as_command(_run)"


def test_on_a_terminal_too(tmp_path: Path) -> None:
    (tmp_path / "a\x1b]0;owned\x07.jsonl").write_text("{\n")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "arcvideo.verify", str(tmp_path)]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, cwd=ROOT):
        os.close(theirs)
        said = b""
        try:
            while piece := os.read(ours, 4096):
                said += piece
        except OSError:  # how a terminal ends
            pass
    os.close(ours)
    assert b"\\x1b]0;owned\\x07" in said
    assert b"\x1b" not in said


def found_in(folder: Path, secret: str) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


@pytest.mark.slow
def test_planted_secrets_reach_no_file_and_no_line(small_world: SmallWorld, tmp_path: Path) -> None:
    """A whole stage with W&B offline, then one that fails on a URL with a password, then a sweep of both."""
    names = {"PLANTED": f"{SECRET}-a", "WANDB_API_KEY": f"{SECRET}-b{'0' * 40}", "HF_TOKEN": f"{SECRET}-c"}
    env = {**os.environ, **names, "WANDB_MODE": "offline"}
    common = [sys.executable, "-m", "arcvideo.train", "stage=sft", *small_world.overrides,
              "logger.wandb=offline", "logger.project=${oc.env:PLANTED}",
              "logger.tags=[${oc.env:HF_TOKEN}]"]  # fmt: skip
    good = finished([*common, f"run_dir={tmp_path / 'good'}"], seconds=600, cwd=ROOT, env=env)
    assert good.returncode == 0, good.stderr
    url = f"https://me:{SECRET}-d@127.0.0.1:9/x.tar?token={SECRET}-e"
    broken = f"data.sources.other.shards='{url}'"
    cache = f"data.shard_cache.path={tmp_path / 'cache'}"
    bad = finished([*common, f"run_dir={tmp_path / 'bad'}", cache, broken], seconds=600, cwd=ROOT, env=env)
    assert bad.returncode == 1
    assert "127.0.0.1:9/x.tar" in bad.stderr
    sweep = [*common, "-m", f"run_dir={tmp_path / 'swept'}", cache, broken, "runner.seed=0,1"]
    swept = finished(sweep, seconds=600, cwd=ROOT, env=env)
    for done in (good, bad, swept):
        assert SECRET not in done.stdout + done.stderr
    found = found_in(tmp_path, SECRET)
    # W&B names the project in the file that goes to its server: that is what the setting is for.
    assert [place for place in found if not place.endswith(".wandb")] == []
    for name in "bcde":
        assert found_in(tmp_path, f"{SECRET}-{name}") == []
