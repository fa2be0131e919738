"""Pre-training of the tiny model's decoder on written TinyShorts scenes (docs/decisions/0002).

A language model that the recipe could start from knows the words, can look things up in a text, and can name the letter
of an option. Both are learnt here from text alone, made from the scripts of training clips.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from arcvideo.feed.collate import Rendered, collate
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.special import special_ids
from arcvideo.render import render_branch
from arcvideo.runner.muon import Muon
from arcvideo.synthetic.questions import letter_items, questions, scene
from arcvideo.synthetic.script import Script
from arcvideo.synthetic.towers import descend, split_parameters
from arcvideo.tasks import make_sample
from arcvideo.tasks.fields import SUFFIXES
from arcvideo.types import Batch, model_inputs

_TASKS = ("qa", "mcq", "grounding", "asr", "caption")
_QUESTIONS_PER_SCENE = 6
_STYLES = ("plain", "think")
"""In turn: the released language model, too, can think aloud before it sees or hears anything."""
_NO_PREFIX = np.zeros(0, dtype=np.int64)
_LETTERS_KNOWN = 0.95
"""Share of right tokens, over about the last ten steps, from which on letters are not trained alone any more."""


def corpus(scripts: Sequence[Script]) -> Iterator[str]:
    """Text as the model will read and write it, for the tokenizer."""
    for script in scripts:
        yield scene(script)
        for item in questions(script):
            yield "\n" + item["question"]
            yield from (item[key] for key in ("answer", "think"))
            yield "\n".join(f"{letter}.{text}" for letter, text in zip("ABCD", item.get("options", ()), strict=False))
    yield from (f"\n{text}" for text in SUFFIXES["brief"].values() if text)


def train_language(
    model: ArcVideoForConditionalGeneration, *, scripts: Sequence[Script], tokenizer: Any, steps: int, seed: int
) -> float:
    """Train the decoder on naming the letter of an option until it can, then on that and on written scenes.

    Returns the share of right tokens.
    """
    rng = np.random.default_rng(seed)
    matrices, others = split_parameters(model.language_model)
    optimizers = [Muon(matrices, lr=4e-3), torch.optim.AdamW(others, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0)]

    first = LettersFirst(steps=steps)

    def loss(step: int) -> tuple[Tensor, Tensor]:
        letters_only = first.alone(step)
        styles = ["plain"] * 32 if letters_only else [*_STYLES] * 5
        families = [_letter_family(rng, tokenizer=tokenizer, style=style) for style in styles]
        if not letters_only:
            chosen = rng.choice(len(scripts), size=8, replace=False)
            families += [_scene_family(scripts[index], rng, tokenizer=tokenizer) for index in chosen]
        value, hits = _loss(model, collate(families, specials=special_ids(tokenizer), weighting="sqrt"))
        first.note(float(hits))
        return value, hits

    return descend(loss, optimizers=optimizers, steps=steps, what="language model")


@dataclasses.dataclass
class LettersFirst:
    """Says how long letters are trained alone: until they are known, and for at most half of the steps.

    They are learnt all at once, on some seeds after 150 steps, on others after 250; with scenes mixed in before that
    they are not learnt.
    """

    steps: int
    recent: float = 0.0
    over: bool = False

    def alone(self, step: int) -> bool:
        """Whether `step`, counted from 0, has letters only; once it has not, no later step has."""
        self.over = self.over or self.recent >= _LETTERS_KNOWN or step >= self.steps // 2
        return not self.over

    def note(self, hits: float) -> None:
        """Take up the share of right tokens of a step."""
        self.recent += 0.1 * (hits - self.recent)


def _letter_family(rng: np.random.Generator, *, tokenizer: Any, style: str) -> Rendered:
    """Return a fact, four options, and the letter of the right one: alone, or behind the fact said again."""
    (item,) = letter_items(seed=int(rng.integers(1 << 31)), index=0, count=1)
    sample = make_sample(item, key="letters", media_key=None, style=style)
    branch = render_branch(sample, tokenizer=tokenizer, wording="brief")
    return Rendered(prefix=_NO_PREFIX, media=(), samples=(sample,), branches=(branch,))


def _scene_family(script: Script, rng: np.random.Generator, *, tokenizer: Any) -> Rendered:
    """Return a clip told in words instead of shown, and questions about it."""
    items = [item for item in questions(script) if item["task"] in _TASKS]
    chosen = rng.permutation(len(items))[:_QUESTIONS_PER_SCENE]
    samples = tuple(
        make_sample(items[index], key=f"{script.key}/{index}", media_key=script.key, style=_STYLES[number % 2])
        for number, index in enumerate(chosen)
    )
    ids = tokenizer.encode(scene(script), add_special_tokens=False)
    return Rendered(
        prefix=np.array([special_ids(tokenizer).start, *ids], dtype=np.int64),
        media=(),
        samples=samples,
        branches=tuple(render_branch(sample, tokenizer=tokenizer, wording="brief") for sample in samples),
    )


def _loss(model: ArcVideoForConditionalGeneration, batch: Batch) -> tuple[Tensor, Tensor]:
    logits = model(**model_inputs(batch)).logits
    losses = nnf.cross_entropy(logits, batch.target_ids, reduction="none")
    hits = (logits.argmax(-1) == batch.target_ids).float()
    weight = batch.target_weights
    return (losses * weight).sum() / weight.sum(), ((hits * weight).sum() / weight.sum()).detach()
