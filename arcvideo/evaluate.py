"""Measure any checkpoint: `arcvideo evaluate checkpoint=DIR data='held-out-*.tar'` or `bench=NAME data=DIR`.

checkpoint= is an export, a released directory, or the folder of a stage; endpoint=URL with model=NAME asks an
OpenAI-compatible server. `arcvideo evaluate benches` lists the benchmarks.

Every measurement has a folder of its own, out=/name=, which is never overwritten: the same command goes on where it was
stopped and asks nothing twice; another measurement is refused. It holds card.json (what decides the answers),
answers-*.jsonl, scores.json, predictions.jsonl and unread.jsonl. docs/evaluation.md has the rest.

  arms=all                also without sound, without picture, with another sound, a shifted one, without time stamps
  compare=A,B             paired differences of two measurements, with a picture
  rescore=DIR             score the answers of a measurement anew, without a model; other metrics= stand beside
  lmms_logs=DIR           write a measurement in the shape of lmms-eval's logs, below out=

torchrun --nproc_per_node 8 -m arcvideo.evaluate ... shares the clips among ranks.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from arcvideo.bench import BENCHES
from arcvideo.files import error_line
from arcvideo.measuring.settings import EvaluateSettings
from arcvideo.places import words_from_home
from arcvideo.processes.command import INTERRUPT_EXIT_CODE, as_command, say_interrupted
from arcvideo.structured import from_words, nearest, words_help


def benches_text() -> str:
    """Return the list of benchmarks with the folder that each wants."""
    rows = [f"  {name:<24}{reader.layout}" for name, reader in BENCHES.items()]
    return "\n".join(["  shards                  tar files of ours", *rows])


def run(settings: EvaluateSettings) -> str:
    """Do what the settings ask for; return what is printed.

    Raises:
        ValueError, OSError: what cannot be used; one line.
    """
    if settings.compare:
        from arcvideo.measuring.compare import compare, compare_text, write_comparison

        first, second = map(Path, settings.compare)
        comparison = compare(first, second, metrics=settings.metrics, bootstrap=settings.bootstrap, seed=settings.seed)
        text, picture = write_comparison(comparison, out=Path(settings.out))
        return f"{compare_text(comparison)}\n{text}, {picture}"
    if settings.lmms_logs:
        from arcvideo.measuring.lmms_logs import write_lmms_logs

        return "\n".join(map(str, write_lmms_logs(Path(settings.lmms_logs), out=Path(settings.out))))
    from arcvideo.measuring.folder import read_card
    from arcvideo.measuring.scores import score_folder, scores_name, table_text

    if settings.rescore:
        again = Path(settings.rescore)
        scores = score_folder(again, metrics=settings.metrics, bootstrap=settings.bootstrap, seed=settings.seed)
        return f"{table_text(scores)}\n{again / scores_name(read_card(again), metrics=settings.metrics)}"
    from arcvideo.measuring.measure import measure  # loads torch, which a wrong setting does without

    folder, measured = measure(settings)
    return "" if measured is None else f"{table_text(measured)}\n{folder}"


def main(words: Sequence[str] | None = None) -> int:
    """Measure, or say in one line what is wrong; returns the exit status."""
    words = words_from_home(words)
    if not words or {"-h", "--help"} & set(words) or list(words) == ["help"]:
        print(f"{__doc__}\n{words_help(EvaluateSettings)}")
        return 0
    if list(words) == ["benches"]:
        print(benches_text())
        return 0
    try:
        if len(words) == 1 and "=" not in words[0]:
            close = nearest(words[0].lstrip("-"), ["benches", "help"])
            raise ValueError(f"{words[0]}: no such word{close}; `benches`, `--help`, or settings as key=value")
        text = run(from_words(EvaluateSettings, words, example="bench=NAME"))
    except (ValueError, OSError) as error:
        print(f"error: {error_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say_interrupted("; the same command goes on from here")
        return INTERRUPT_EXIT_CODE
    print(text)
    return 0


if __name__ == "__main__":
    as_command(main)
