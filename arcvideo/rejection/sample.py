"""Rejection sampling: `arcvideo sample checkpoint=DIR shards='data/train-*.tar' out=DIR`.

Draws `num_generations` answers to every question, keeps those that pass (MCQ right, IoU above 0.6, format valid; at
most `keep` a question) and writes shards with their reasoning, which `stage=cold_start` and `stage=final_sft` train on
with the style `draft` (the answer as it was drawn) or `think` (the exact answer behind the drawn reasoning).

All answers stand in NAME-000000.answers.jsonl beside the shards, so the same command goes on where it was stopped, and
other bounds choose anew without drawing again. Several processes (RANK, WORLD_SIZE) share the work.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from arcvideo.files import error_line
from arcvideo.places import words_from_home
from arcvideo.processes.command import INTERRUPT_EXIT_CODE, as_command, say_interrupted
from arcvideo.sampling.settings import SampleSettings
from arcvideo.structured import from_words, words_help


def table_text(totals: dict[str, Any]) -> str:
    """Return the summary for a terminal."""
    lines = []
    for task, row in totals["tasks"].items():
        lines.append(
            f"{task}: {row['questions']} questions, {row['passed']:.1%} of {row['answers']} answers pass, "
            f"{row['questions_kept']:.1%} of the questions are kept ({row['items_written']} items); format valid "
            f"{row['format_valid']:.1%}, cut off {row['cut_off']:.1%}"
        )
        lines.append(f"  questions by number of passing answers: {row['passing_answers_of_a_question']}")
        lines.append(f"  answers by reward, tenths: {row['reward_histogram']}")
    if totals["lost"]:
        lines.append(
            f"{totals['lost']} questions could not be asked: their media cannot be read (see the answers files)"
        )
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    """Sample, or say in one line what is wrong; returns the exit status."""
    words = words_from_home(words)
    if not words or {"-h", "--help"} & set(words):
        print(f"{__doc__}\n{words_help(SampleSettings)}")
        return 0
    try:
        settings = from_words(SampleSettings, words, example="keep=2")
        from arcvideo.rejection.answers import sample  # loads torch, which a wrong setting does without

        totals = sample(settings)
    except (ValueError, OSError) as error:
        print(f"error: {error_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say_interrupted("; the same command goes on from here")
        return INTERRUPT_EXIT_CODE
    if totals is None:
        print("this rank is done; the summary is written when all are")
        return 0
    print(table_text(totals))
    written = sum(row["items_written"] for row in totals["tasks"].values())
    print(f"{written} items in {settings.out}/{settings.name}-*.tar, figures in {settings.name}.summary.json")
    return 0


if __name__ == "__main__":
    as_command(main)
