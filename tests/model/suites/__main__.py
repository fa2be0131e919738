"""`python -m tests.model.suites` runs transformers' own common suites of tests against our classes.

  python -m tests.model.suites                           # models and processors, from the distribution that pip gives
  python -m tests.model.suites --source ~/transformers   # a checkout; its suite of generation too

The suites are not copied into this repository. `tester.py` and `processor.py` beside this file say what they shall
test, and skip what we do otherwise on purpose, with the reason; they are put among their tests, in a folder of its own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import transformers

from arcvideo.model.disk.loading import save_model
from arcvideo.model.disk.tokenizer import build_tiny_tokenizer, save_tokenizer
from tests.model.families import CORPUS, assembled
from tests.model.small import small_model

HERE = Path(__file__).parent
ABSENT = ("exporters/test_export.py:ExportTesterMixin", "generation/test_utils.py:GenerationTesterMixin")
"""What the common suites import and the source distribution leaves out: classes without tests stand in there."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run of the suites gave."""

    passed: tuple[str, ...]
    failed: dict[str, str]
    """Test -> first line of what was wrong."""
    skipped: dict[str, str]
    """Test -> reason that the suite gives."""


def source_distribution(folder: Path) -> Path:
    """Download the source distribution of the installed transformers and return its root.

    Raises:
        OSError: pip cannot get it.
    """
    version = transformers.__version__
    words = ["--no-deps", "--no-binary", "transformers", "--no-build-isolation", "--dest", str(folder), "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *words, f"transformers=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    archives = list(folder.glob("transformers-*.tar.gz"))
    if done.returncode or not archives:
        raise OSError(f"pip gives no source distribution of transformers {version}: {done.stderr.strip()[-200:]}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"transformers-{version}"


def add_parameterized(folder: Path) -> Path:
    """Install what the suites need beside pytest into a folder of its own and return it.

    Raises:
        OSError: pip cannot get it.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), "parameterized==0.9.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise OSError(f"pip gives no parameterized, which the suites need: {done.stderr.strip()[-200:]}")
    return folder


def place(source: Path, folder: Path) -> Path:
    """Copy the suites of a checkout or source distribution into a folder, ours among them; return its `tests`."""
    tests = folder / "suites" / "tests"
    tests.mkdir(parents=True)
    for kind in ("common", "mixin"):
        for part in (source / "tests").glob(f"test_*_{kind}.py"):
            shutil.copy(part, tests)
    for name in ("generation", "exporters", "utils"):
        if (source / "tests" / name).is_dir():
            shutil.copytree(source / "tests" / name, tests / name, dirs_exist_ok=True)
    for row in ABSENT:
        path, _, mixin = row.partition(":")
        if not (tests / path).exists():
            (tests / path).parent.mkdir(exist_ok=True)
            (tests / path).write_text(f"class {mixin}:\n    pass\n")
    hub = tests.parent / "utils" / "fetch_hub_objects_for_ci.py"
    hub.parent.mkdir(exist_ok=True)
    hub.write_text("def url_to_local_path(url, **_):\n    return url\n")
    ours = tests / "models" / "arcvideo"
    ours.mkdir(parents=True)
    for package in (tests, tests / "models", ours, tests / "generation", tests / "exporters"):
        (package / "__init__.py").touch()
    shutil.copy(HERE / "tester.py", ours / "test_modeling_arcvideo.py")
    shutil.copy(HERE / "processor.py", ours / "test_processing_arcvideo.py")
    return tests


def run(source: Path, folder: Path, *, words: list[str]) -> Outcome:
    """Run the suites in a folder and return what they gave."""
    tests, report, tiny = place(source, folder), folder / "suites.xml", folder / "tiny"
    save_model(small_model(), tiny / "arc_hunyuan")
    save_model(assembled("arc_qwen", folder / "bases")[1], tiny / "arc_qwen")
    save_tokenizer(build_tiny_tokenizer(CORPUS, vocab_size=512), tiny / "tokenizer")
    paths = [str(HERE.parents[2]), str(add_parameterized(folder / "extra"))]
    variables = {"ARCVIDEO_TINY": str(tiny), "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junit-xml={report}",
        "--disable-warnings",
        *words,
    ]
    done = subprocess.run([*command, str(tests / "models" / "arcvideo")], cwd=tests.parent, env=os.environ | variables)
    if not report.exists():
        raise RuntimeError(f"pytest ended with {done.returncode} and no report")
    return read(report)


def read(report: Path) -> Outcome:
    """Return what a JUnit file of pytest says."""
    passed, failed, skipped = [], {}, {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}"
        fault = next((case.find(kind) for kind in ("failure", "error") if case.find(kind) is not None), None)
        if fault is not None:
            failed[name] = " ".join((fault.get("message") or "").split())[:200]
        elif (skip := case.find("skipped")) is not None:
            skipped[name] = skip.get("message") or ""
        else:
            passed.append(name)
    return Outcome(passed=tuple(passed), failed=failed, skipped=skipped)


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when nothing fails, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.model.suites", description=__doc__)
    parser.add_argument("--source", type=Path, help="a checkout of transformers of the installed version")
    parser.add_argument("-k", default="", help="only tests whose names match, as in pytest")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        source = options.source or source_distribution(Path(folder))
        outcome = run(source, Path(folder), words=["-k", options.k] if options.k else [])
    print(f"{len(outcome.passed)} passed, {len(outcome.failed)} failed, {len(outcome.skipped)} skipped, because:")
    for reason, count in Counter(outcome.skipped.values()).most_common():
        print(f"  {count:3d}  {reason}")
    for test, line in outcome.failed.items():
        print(f"FAILED {test}: {line}")
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main())
