"""The tests as other machines would run them: `make machines`, or `python -m tests.machines [options] [pytest words]`.

Every CPU capability that this processor has, times every thread count, one after the other. A capability stands for
the kernels of torch (ATEN_CPU_CAPABILITY) and of the libraries that multiply its matrices (oneDNN, MKL). A table comes
at the end; the exit status is 1 when any cell failed. `--copies 2` runs each cell twice at the same time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
CAPABILITIES: dict[str, dict[str, str]] = {
    "default": {"ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {},
}
"""In ascending order, with what holds the libraries of matrix products down to it."""
FAST = ["-m", "not slow and not gpu"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One way to run the tests."""

    capability: str
    threads: int
    copy: int = 1

    @property
    def environment(self) -> dict[str, str]:
        """Variables that are set for it."""
        count = str(self.threads)
        return {
            "ATEN_CPU_CAPABILITY": self.capability,
            **CAPABILITIES[self.capability],
            "OMP_NUM_THREADS": count,
            "MKL_NUM_THREADS": count,
        }


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a cell."""

    cell: Cell
    status: int
    """Exit status of pytest."""
    seconds: float
    tests: int = 0
    skipped: int = 0
    failed: tuple[str, ...] = ()
    """Names of the tests that failed or had an error."""


def best_capability() -> str:
    """The highest capability of this processor that torch would use."""
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    plain = {key: value for key, value in os.environ.items() if key != "ATEN_CPU_CAPABILITY"}
    told = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=True).stdout
    name = told.strip().lower()
    return name if name in CAPABILITIES else "default"


def cells(*, capabilities: Sequence[str], threads: Sequence[int], copies: int, best: str) -> list[list[Cell]]:
    """Cells to run one after the other, those that run side by side together; without what the processor lacks."""
    order = list(CAPABILITIES)
    return [
        [Cell(capability=capability, threads=count, copy=copy) for copy in range(1, copies + 1)]
        for capability in capabilities
        if order.index(capability) <= order.index(best)
        for count in threads
    ]


def read_report(path: Path, *, cell: Cell, status: int, seconds: float) -> Result:
    """Counts from pytest's JUnit file; only the status where there is none."""
    if not path.exists():
        return Result(cell=cell, status=status, seconds=seconds)
    cases = ElementTree.parse(path).getroot().findall(".//testcase")
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    return Result(
        cell=cell,
        status=status,
        seconds=seconds,
        tests=len(cases),
        skipped=sum(case.find("skipped") is not None for case in cases),
        failed=tuple(f"{case.get('classname')}::{case.get('name')}" for case in bad),
    )


def run(group: Sequence[Cell], *, words: Sequence[str], folder: Path) -> list[Result]:
    """Run cells side by side; what they print goes to the terminal."""
    began = time.monotonic()
    started: list[tuple[Cell, Path, subprocess.Popen[bytes]]] = []
    for cell in group:
        report = folder / f"{cell.capability}-{cell.threads}-{cell.copy}.xml"
        command = [sys.executable, "-m", "pytest", *FAST, f"--junitxml={report}", *words]
        environment: Mapping[str, str] = {**os.environ, **cell.environment}
        started.append((cell, report, subprocess.Popen(command, cwd=ROOT, env=environment)))
    done = []
    for cell, report, process in started:
        status = process.wait()
        done.append(read_report(report, cell=cell, status=status, seconds=time.monotonic() - began))
    return done


def table(results: Sequence[Result]) -> str:
    """One line a cell, then the names of what failed."""
    lines = [f"{'capability':<12}{'threads':>7}{'copy':>6}{'tests':>7}{'failed':>8}{'skipped':>9}{'seconds':>9}"]
    for one in results:
        cell, said = one.cell, "" if one.status == 0 else f"  FAILED (exit status {one.status})"
        lines.append(
            f"{cell.capability:<12}{cell.threads:>7}{cell.copy:>6}{one.tests:>7}{len(one.failed):>8}{one.skipped:>9}"
            f"{one.seconds:>9.0f}{said}"
        )
    lines += [f"{one.cell.capability}, {one.cell.threads} threads: {name}" for one in results for name in one.failed]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 1 when a cell failed or there was none to run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capabilities", default=" ".join(CAPABILITIES), help="of default, avx2, avx512")
    parser.add_argument("--threads", default="1 2 4", help="thread counts")
    parser.add_argument("--copies", type=int, default=1, help="how many times each cell runs at the same time")
    options, words = parser.parse_known_args(arguments)
    wanted = options.capabilities.split()
    unknown = [name for name in wanted if name not in CAPABILITIES]
    if unknown:
        parser.error(f"{unknown[0]}: choose from {', '.join(CAPABILITIES)}")
    counts = [int(count) for count in options.threads.split()]
    best = best_capability()
    groups = cells(capabilities=wanted, threads=counts, copies=options.copies, best=best)
    left = [name for name in wanted if name not in {cell.capability for group in groups for cell in group}]
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="machines-") as folder:
        for group in groups:
            print(f"--- {group[0].capability}, {group[0].threads} threads", flush=True)
            results += run(group, words=words, folder=Path(folder))
    print("\n" + table(results))
    for name in left:
        print(f"{name}: skipped, this processor has {best} at most")
    return int(not results or any(one.status for one in results))


if __name__ == "__main__":
    sys.exit(main())
