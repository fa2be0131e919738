"""Fuzz the readers, guided by coverage: `python -m tests.fuzz --seconds 600 [reader ...]`; needs `pip install atheris`.

Each reader runs in a process of its own for so many seconds, from its seeds and what earlier runs found (`--corpus`).
An input that a reader did not refuse properly is written to `--out`/READER-*; put it into tests/fuzz/found/READER/ and
mend the reader. Prints a line a reader: inputs tried, branches reached, and the faults.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

MEMORY_MB = 4096
"""A reader that needs more has no bound."""
DEADLINE = 20
"""Seconds for one input."""
LEAST_BRANCHES = 50
"""Every reader has more: one that reaches fewer is not watched, and the fuzzer is blind."""


def fuzz(name: str, *, seconds: int, corpus: Path, out: Path) -> None:
    """Run libFuzzer on a reader in this process, which does not return."""
    import atheris

    # To the end: what readers import when they need it is watched, too.
    with atheris.instrument_imports(include=["arcvideo"]):
        from tests.fuzz.readers import READERS, run

        reader = READERS[name]
        scratch = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        corpus.mkdir(parents=True, exist_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(reader.seeds(scratch / "seeds")):
            (corpus / f"seed-{number}").write_bytes(seed)
        words = _dictionary(corpus, scratch / "words")

        def one(data: bytes) -> None:
            run(name, data, folder=scratch / "input")

        def mutate(data: bytes, most: int, seed: int) -> bytes:
            changed = atheris.Mutate(data, most) if seed % 3 == 0 else reader.mutate(bytes(data), seed)
            return changed[:most]

        flags = [f"-max_total_time={seconds}", f"-timeout={DEADLINE}", f"-rss_limit_mb={MEMORY_MB}", "-max_len=65536",
                 f"-artifact_prefix={out}/{name}-", f"-dict={words}", "-print_final_stats=1"]  # fmt: skip
        atheris.Setup([sys.argv[0], *flags, str(corpus)], one, custom_mutator=mutate)
        atheris.Fuzz()


def _dictionary(corpus: Path, path: Path) -> Path:
    """Write the words of the seeds, which a fuzzer puts elsewhere."""
    found: set[bytes] = set()
    for seed in corpus.glob("seed-*"):
        found.update(re.findall(rb"[A-Za-z_]{3,24}", seed.read_bytes()[:20000]))
    rows = "".join(f'"{word.decode()}"\n' for word in sorted(found)[:2000])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(rows, encoding="ascii")
    return path


def main() -> int:
    """Fuzz the named readers, or all, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("readers", nargs="*")
    parser.add_argument("--seconds", type=int, default=600, help="of each reader")
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz/corpus"))
    parser.add_argument("--out", type=Path, default=Path("build/fuzz/found"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        fuzz(options.one, seconds=options.seconds, corpus=options.corpus / options.one, out=options.out)
        return 0
    from tests.fuzz.readers import READERS

    faults, path = 0, os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
    for name in options.readers or READERS:
        words = ["--one", name, "--seconds", str(options.seconds), "--corpus", str(options.corpus)]
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", *words, "--out", str(options.out)],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        tried = re.findall(r"stat::number_of_executed_units: (\d+)", done.stderr)
        reached = re.findall(r"cov: (\d+)", done.stderr)
        print(f"{name}: {tried[-1] if tried else '?'} inputs, {reached[-1] if reached else '?'} branches", flush=True)
        blind = not reached or int(reached[-1]) < LEAST_BRANCHES
        if done.returncode or blind:
            faults += 1
            print(done.stderr[-3000:] if done.returncode else "its code was not watched", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
