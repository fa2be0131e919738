"""Instruction suffixes: what the question ends with when reasoning and an answer block are asked for.

`arc` is the wording of the released model, verbatim. `brief` costs a small model few tokens.
"""

from __future__ import annotations

_ARC = (
    "Output the thinking process in <think> </think> and final answer{only} in <answer> </answer> tags, i.e., "
    "<think> reasoning process here </think><answer> answer here </answer>."
)

SUFFIXES: dict[str, dict[str, str]] = {
    "arc": {
        "none": "",
        "general": _ARC.format(only=""),
        "mcq": _ARC.format(only=" (only option index)"),
        "grounding": _ARC.format(only=" (only time range)"),
    },
    "brief": {
        "none": "",
        "general": "Think, then answer.",
        "mcq": "Think, then give the option.",
        "grounding": "Think, then give the time range.",
    },
}


def suffix(instruction: str, *, wording: str) -> str:
    """Return the suffix without its leading newline; empty for the instruction `none`."""
    if wording not in SUFFIXES:
        raise ValueError(f"wording={wording!r}: choose one of {', '.join(SUFFIXES)}")
    if instruction not in SUFFIXES[wording]:
        raise ValueError(f"instruction={instruction!r}: choose one of {', '.join(SUFFIXES[wording])}")
    return SUFFIXES[wording][instruction]
