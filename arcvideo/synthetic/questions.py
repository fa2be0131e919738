"""Questions about a script with their exact answers, as record items (docs/data-format.md).

Every item says what it needs (`needs:vision`, `needs:audio`, `needs:both`, `needs:time`) and its topic, so that
training mixtures and evaluations choose by tag.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from arcvideo.synthetic.script import COLORS, KINDS, SCREEN_WORDS, SOUNDS, SPOKEN_WORDS, Script
from arcvideo.tasks.spans import clock, clock_span

Item = dict[str, Any]
Fact = tuple[str, str, tuple[str, ...], list[str]]
"""Question, answer, the vocabulary the answer comes from, tags."""
_LETTERS = "ABCD"
_VOCABULARIES = (COLORS, KINDS, SCREEN_WORDS, SOUNDS, SPOKEN_WORDS)


def questions(script: Script) -> list[Item]:
    """Return all items of a clip, in a fixed order; the order of options comes from the script's seed."""
    rng = np.random.default_rng([script.seed, 1])
    makers = (_asr, _caption, _qa, _mcq, _grounding, _summary, _chapters)
    return [item for maker in makers for item in maker(script, rng)]


def letter_items(*, seed: int, index: int, count: int = 4) -> list[Item]:
    """Return questions about nothing but their own text: a fact, four options, the letter of the right one.

    Text like this among clips keeps a language model able to name options while it learns to see and hear.
    """
    rng = np.random.default_rng([seed, 2, index])
    items = []
    for _ in range(count):
        vocabulary = _VOCABULARIES[int(rng.integers(len(_VOCABULARIES)))]
        answer, *wrong = (str(text) for text in rng.choice(vocabulary, size=4, replace=False))
        items.append(_choices(f"It is {answer}.", answer, wrong, _tags("text", "letters"), rng))
    return items


def _tags(needs: str, topic: str) -> list[str]:
    return [f"needs:{needs}", f"topic:{topic}"]


def _transcript(script: Script) -> str:
    return " ".join(word.text for word in script.speech)


def _events(script: Script) -> list[tuple[int, int, str]]:
    events = [(shape.start, shape.end, shape.name) for shape in script.shapes]
    events += [(word.start, word.end, f"text {word.text}") for word in script.words]
    events += [(sound.start, sound.end, sound.name) for sound in script.sounds]
    return sorted(events)


def scene(script: Script) -> str:
    """Return a clip told in words: every event with its span, then what is said and when."""
    lines = [f"{clock_span((start, end))} {name}" for start, end, name in _events(script)]
    lines += [f"{clock(int(word.start))} says {word.text}" for word in script.speech]
    return "\n".join(lines)


def _asr(script: Script, rng: np.random.Generator) -> list[Item]:
    if not script.speech:
        return []
    answer = _transcript(script)
    return [
        {
            "task": "asr",
            "question": "What is said?",
            "answer": answer,
            "think": "I listen.",
            "tags": _tags("audio", "speech"),
        }
    ]


def _caption(script: Script, rng: np.random.Generator) -> list[Item]:
    """Return a picture's caption and its text (paper 3.2.2: image-text pairs for caption and OCR)."""
    if not script.shapes:
        return []
    shown = ", ".join(shape.name for shape in sorted(script.shapes, key=lambda shape: shape.x))
    text = script.words[0].text
    return [
        {
            "task": "caption",
            "question": "What is shown?",
            "answer": shown,
            "think": "I look.",
            "tags": _tags("vision", "shapes"),
        },
        {
            "task": "caption",
            "question": "Read the text.",
            "answer": text,
            "think": "I read.",
            "tags": _tags("vision", "text"),
        },
    ]


def _facts(script: Script) -> list[Fact]:
    """Return what can be asked with exactly one right answer."""
    facts: list[Fact] = []
    for shape in script.shapes:
        facts.append((f"What color is the {shape.kind}?", shape.color, COLORS, _tags("vision", "color")))
        facts.append((f"What shape is {shape.color}?", shape.kind, KINDS, _tags("vision", "shape")))
    for word in script.words:
        facts.append(("Which text is shown?", word.text, SCREEN_WORDS, _tags("vision", "text")))
    for sound in script.sounds:
        facts.append(("Which sound is heard?", sound.name, SOUNDS, _tags("audio", "sound")))
    if script.speech:
        first, last = script.speech[0].text, script.speech[-1].text
        facts.append(("Which word is said first?", first, SPOKEN_WORDS, _tags("audio", "speech")))
        facts.append(("Which word is said last?", last, SPOKEN_WORDS, _tags("audio", "speech")))
    return facts


def _qa(script: Script, rng: np.random.Generator) -> list[Item]:
    heard = f"I hear {_transcript(script)}."
    return [
        {
            "task": "qa",
            "question": question,
            "answer": answer,
            "think": heard if topic(tags) == "speech" else f"I look for {topic(tags)}.",
            "tags": tags,
        }
        for question, answer, _, tags in _facts(script)
    ]


def topic(tags: list[str]) -> str:
    """Return the topic among an item's tags."""
    return next(tag.removeprefix("topic:") for tag in tags if tag.startswith("topic:"))


def _mcq(script: Script, rng: np.random.Generator) -> list[Item]:
    """Four options each; vision, audio, both together, and order in time."""
    said = {word.text for word in script.speech}
    items = []
    for question, answer, vocabulary, tags in _facts(script) + _joint_facts(script):
        wrong = [str(text) for text in rng.permutation([text for text in vocabulary if text != answer])]
        # Two other said words among the options: naming any word that was heard must not be enough.
        wrong = [text for text in wrong if text in said][:2] + [text for text in wrong if text not in said]
        items.append(_choices(question, answer, wrong[:3], tags, rng))
    return items


def _joint_facts(script: Script) -> list[Fact]:
    """Return facts that need sight and hearing together, or order."""
    facts: list[Fact] = []
    for shape in script.shapes:
        heard = [word.text for word in script.speech if int(word.start) == shape.start]
        if heard:
            question = f"Which word is said when the {shape.name} appears?"
            facts.append((question, heard[0], SPOKEN_WORDS, _tags("both", "joint")))
    starts = [shape.start for shape in script.shapes]
    if len(set(starts)) == 2:
        early, late = sorted(script.shapes, key=lambda shape: shape.start)
        decoys = tuple(f"{color} {kind}" for color, kind in ((early.color, late.kind), (late.color, early.kind)))
        facts.append(("What appears earlier?", early.name, (early.name, late.name, *decoys), _tags("vision", "order")))
    return facts


def _choices(question: str, answer: str, wrong: list[str], tags: list[str], rng: np.random.Generator) -> Item:
    options = [str(text) for text in rng.permutation([answer, *wrong])]
    letter = _LETTERS[options.index(answer)]
    return {
        "task": "mcq",
        "question": question,
        "options": options,
        "answer": letter,
        "think": _one_of((f"It is {answer}.", f"{answer} {letter}."), rng),
        "tags": tags,
    }


def _grounding(script: Script, rng: np.random.Generator) -> list[Item]:
    """Return spans of what is seen, read and heard; the thought names it and every second at which it is there."""
    if script.duration == 1:
        return []
    events = [(shape.name, "visible", shape, "vision", "shapes") for shape in script.shapes]
    events += [(f"text {word.text}", "shown", word, "vision", "text") for word in script.words]
    events += [(sound.name, "heard", sound, "audio", "sound") for sound in script.sounds]
    items = []
    for name, verb, event, needs, subject in events:
        seconds = " ".join(clock(second) for second in range(event.start, event.end))
        items.append(
            {
                "task": "grounding",
                "question": f"When is the {name} {verb}?",
                "answer": clock_span((event.start, event.end)),
                "span": [event.start, event.end],
                "think": _one_of((f"I look for the {subject}.", f"{name} {seconds}"), rng),
                "tags": [*_tags(needs, subject), "needs:time"],
            }
        )
    return items


def _one_of(thoughts: tuple[str, ...], rng: np.random.Generator) -> str:
    """Return one of several true thoughts: people write down different ones, and nobody says which helps the reader
    most.
    """
    return thoughts[int(rng.integers(len(thoughts)))]


def _summary(script: Script, rng: np.random.Generator) -> list[Item]:
    parts = [name for _, _, name in _events(script)]
    if script.speech:
        parts.append(f'says "{_transcript(script)}"')
    return [
        {
            "task": "summary",
            "question": "Describe the video content.",
            "answer": ", ".join(parts),
            "think": " ".join(f"{clock_span((start, end))} {name}." for start, end, name in _events(script)),
            "tags": _tags("both" if script.speech and script.shapes else "vision" if script.shapes else "audio", "all"),
        }
    ]


def _chapters(script: Script, rng: np.random.Generator) -> list[Item]:
    if script.duration == 1:
        return []
    events = _events(script)
    needs = "vision" if not script.sounds else "both" if script.shapes else "audio"
    return [
        {
            "task": "chapters",
            "question": "Localize video chapters with temporal boundaries and the corresponding sentence description.",
            "answer": "\n".join(f"{clock_span((start, end))} {name}" for start, end, name in events),
            "events": [[start, end, name] for start, end, name in events],
            "think": f"I see {len(events)} events.",
            "tags": [*_tags(needs, "all"), "needs:time"],
        }
    ]
