"""What README and docs tell people to type must work, and what they name must exist."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
from torch.distributed.run import parse_args

from arcvideo.__main__ import COMMANDS
from arcvideo.ask import read_words
from arcvideo.composing.compose import stage_config
from arcvideo.composing.overrides import override_problems, setting_type
from arcvideo.composing.recipe import load_recipe, planned_stages
from arcvideo.composing.sweep import first_words
from arcvideo.evaluate import EvaluateSettings
from arcvideo.preflight.__main__ import OWN_WORDS
from arcvideo.sampling.settings import SampleSettings
from arcvideo.structured import from_words
from tests.report.browser import CHROMIUM, show

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SECTIONS = (
    "data",
    "evaluation",
    "optimizer",
    "schedule",
    "runner",
    "grpo",
    "logger",
    "stage",
    "model",
    "engine",
    "lora",
)
FOLDERS = ("arcvideo", "conf", "docs", "launch", "recipes", "tests")
"""Results of benchmarks are not among them: they are written where a benchmark is run."""


NO_SETTINGS = (".", ".json", ".jsonl", ".py", "model.generate")
"""Ends of words that look like settings."""


MODULES = {name: command.module.removesuffix(".__main__") for name, command in COMMANDS.items()}
"""Word behind `arcvideo` -> its module."""


class Parsed(Exception):
    """The arguments were accepted."""


def commands(path: Path) -> Iterator[str]:
    """Command lines with `-m arcvideo.X` or `arcvideo X` in code blocks and inline code, as module and words.

    A line ending in a backslash goes on.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        text = "\n".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    text = text.replace("\\\n", " ")
    lines = [
        line for line in text.splitlines() if re.match(r"\s*([A-Z_]+=\S+ |[A-Z_]+=\"[^\"]*\" )?(python|torchrun)", line)
    ]
    inline = re.findall(r"`([^`\n]*-m arcvideo[^`\n]*)`", text)
    short = re.findall(r"(?:^ *|`)arcvideo (\w+)((?: [^`\n]*)?)", text, re.MULTILINE)
    yield from (f"{MODULES[name]}{re.split(r' {3,}', words)[0]}" for name, words in short if name in MODULES)
    for line in [*lines, *inline]:
        found = re.search(r"-m (arcvideo[\w.]*.*)", line)
        if found:
            yield re.split(r" {3,}|`", found[1])[0]  # what stands far behind a command in a comment explains it


WHERE = {line: path.name for path in [*PAGES, *RECIPES] for line in commands(path)}


def test_commands_are_found() -> None:
    assert len(WHERE) > 30
    assert any(line.startswith("arcvideo.train -m stage=grpo") for line in WHERE)


@cache
def planned(recipe: str, extra: tuple[str, ...]) -> int:
    return len(planned_stages(load_recipe(recipe), extra=extra))


@pytest.mark.parametrize("line", WHERE, ids=[f"{page}: {line[:70]}" for line, page in WHERE.items()])
def test_a_command_is_understood(line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings compose, recipes plan, arguments parse; nothing is run."""
    module, *words = shlex.split(line, comments=True)
    if "my_conf" in line:
        monkeypatch.chdir(tmp_path)
        _write_options(tmp_path / "my_conf")
    for name in ("my_rewards", "my_losses"):
        if name in line:
            _write_module(name, folder=tmp_path)
            monkeypatch.syspath_prepend(str(tmp_path))
    if words == ["$@"]:
        return
    importlib.import_module(module)
    if module == "arcvideo.train":
        assert override_problems(words) == []
        if any(word.startswith("stage=") for word in words):
            stage_config(
                [word for word in first_words(words) if not word.startswith(("hydra/", "hydra.l", "hydra.sw"))]
            )
    elif module in ("arcvideo.pipeline", "arcvideo.preflight"):
        own = ("stale", *OWN_WORDS)
        names = [word.removeprefix("recipe=") for word in words if word.startswith("recipe=")]
        extra = [word for word in words if word.partition("=")[0] not in own and word != "status"]
        if names and names[0] not in ("NAME", "..."):
            assert planned(names[0], tuple(extra))
    elif module == "arcvideo.preflight.trace":
        assert not words or stage_config(words)
    elif module == "arcvideo.evaluate":
        known = {field.name for field in dataclasses.fields(EvaluateSettings)}
        assert [word for word in words if "=" in word and word.partition("=")[0] not in known] == []
    elif module in ("arcvideo.ask", "arcvideo.rejection.sample"):
        (checkpoint,) = [word.removeprefix("checkpoint=") for word in words if word.startswith("checkpoint=")] or [""]
        monkeypatch.chdir(tmp_path)
        Path(checkpoint).mkdir(parents=True, exist_ok=True)
        for video in (word.removeprefix("video=") for word in words if word.startswith("video=")):
            Path(video).parent.mkdir(parents=True, exist_ok=True)
            Path(video).touch()
        if words:
            assert read_words(words) if module == "arcvideo.ask" else from_words(SampleSettings, words, example="")
    elif module == "arcvideo.torchrun":
        first = next((place for place, word in enumerate(words) if "=" in word), len(words))
        parse_args([*words[:first], "script"])
        stage_config(words[first:])
    elif words and not any(word.startswith("[") for word in words):
        _parse(module, words, monkeypatch=monkeypatch)


def _write_module(name: str, *, folder: Path) -> None:
    """Write the module that docs/adding.md shows under that name."""
    page = (ROOT / "docs" / "adding.md").read_text()
    (code,) = re.findall(rf"`{name}\.py`:\n```python\n(.*?)```", page, re.DOTALL)
    (folder / f"{name}.py").write_text(code)


def _write_options(folder: Path) -> None:
    """Write the folder of options that docs/running.md describes."""
    (page,) = re.findall(r"```yaml\n(# @package _global_.*?)```", (ROOT / "docs" / "running.md").read_text(), re.DOTALL)
    experiment = "# @package _global_\ndefaults: [override /stage: tiny/sft]\nrunner: {steps: 7}\n"
    files = {"stage/mine": page, "engine/ours": "zero_optimization: {stage: 0}\n", "experiment/short": experiment}
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(text)


def _parse(module: str, words: list[str], *, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the command up to the point where it has understood its arguments."""
    real = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *arguments: object, **options: object) -> None:
        real(self, *arguments, **options)  # type: ignore[call-overload]
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", [module, *words])
    name = f"{module}.__main__" if (ROOT / module.replace(".", "/") / "__main__.py").exists() else module
    with pytest.raises(Parsed):
        importlib.import_module(name).main()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_settings_and_files_that_are_named_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    missing = []
    for code in re.findall(r"`([^`\n]+)`", text):
        for word in code.split():
            key = word.partition("=")[0].lstrip("+~'")
            if re.fullmatch(rf"({'|'.join(SECTIONS)})\.[a-z_A-Z.]+", key) and not key.endswith(NO_SETTINGS):
                if setting_type(key) is None:
                    missing.append(key)
            elif re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./-]+", word) and not list(ROOT.glob(f"{word}*")):
                missing.append(word)
    assert missing == []


def test_targets_of_make_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for path in PAGES for word in re.findall(r"(?:`|^)make ([a-z-]+)", path.read_text(), re.MULTILINE)}
    assert named
    assert named <= targets


class Outside(HTMLParser):
    """What a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        loaded = values.get("src") or (
            values.get("href") if tag == "link" and values.get("rel") != "canonical" else None
        )
        if loaded and loaded.startswith(("http:", "https:", "//")):
            self.found.append(loaded)


def _searched(folder: Path) -> None:
    """Search in a browser that has the site's files and nothing else."""
    assert (folder / "site" / "search" / "search_index.js").exists()
    if CHROMIUM is None:
        return
    start = folder / "site" / "index.html"
    found = show(start, scratch=folder, query="q=max_logprob_gap", patience_ms=20_000).dom
    assert re.search(r'<a href="[^"]*settings\.html#grpo" class="md-search-result__link"', found)


@pytest.mark.slow
def test_the_site_builds_with_whole_links_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the extra `docs` is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= 25
    for page in pages:
        outside = Outside()
        outside.feed(page.read_text(encoding="utf-8"))
        assert outside.found == [], page
    _searched(tmp_path)
    assert "grpo.max_logprob_gap" in (tmp_path / "site" / "settings.html").read_text()
    assert "arcvideo.composing.compose" in (tmp_path / "site" / "api.html").read_text()
    shutil.rmtree(tmp_path / "site")
