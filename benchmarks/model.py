"""`make bench-model`: four-axis positions of a long video, and the memory of a head that is computed at labels only.

Positions are compared with the rule written down token by token. Memory is the peak of a process of its own for one
forward and backward pass over a 17,700-token sample with 300 labels. A single narrow layer stands below the head, and
the vocabulary is an eighth of the released one, so that the full head fits on a laptop.
TODO: unmeasured on CUDA at full size.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.positions import video_ids, xd_positions
from arcvideo.model.settings import AudioSettings, ModelSettings, TextSettings, VisionSettings
from arcvideo.model.special import SpecialIds
from benchmarks.table import Row, interleaved, median_ratio, report

SPECIAL = SpecialIds()
TOKENS = 17_700
LABELS = 300
VOCABULARY = 128_256 // 8
BUDGET_MS = 1.0


def long_sample() -> Tensor:
    """Return (17700,) ids: 150 frames of 112 tokens and text behind them."""
    video = video_ids(10, frames=150, special=SPECIAL)
    return torch.cat([torch.tensor([SPECIAL.start]), video, torch.full((TOKENS - 1 - len(video),), 7)])


def token_by_token(ids: Tensor) -> Tensor:
    """Return (4, L) positions by the rule of `model/positions.py`, read literally."""
    tokens = ids.tolist()
    axes = [[index] * 4 for index in range(len(tokens))]
    frame, begin, row, column = -1, None, 0, 0
    for index, token in enumerate(tokens):
        if token == SPECIAL.img_open:
            frame, begin, row, column = frame + 1, index, 0, 0
        elif token == SPECIAL.img_close:
            axes[index - 1] = [index - 1] * 4
            begin = None
        elif begin is not None and index >= begin + 2:
            axes[index] = [index, column, row, frame]
            column += 1
            if token == SPECIAL.newline:
                row, column = row + 1, 0
    return torch.tensor(axes).T


def milliseconds(make: Callable[[], Tensor]) -> float:
    began = time.perf_counter()
    make()
    return 1000 * (time.perf_counter() - began)


def position_rows() -> list[Row]:
    ids = long_sample()
    equal = torch.equal(xd_positions(ids, SPECIAL), token_by_token(ids))
    sides = {
        "ours": lambda: milliseconds(lambda: xd_positions(ids, SPECIAL)),
        "literal": lambda: milliseconds(lambda: token_by_token(ids)),
    }
    found = interleaved(sides, rounds=15, warm_up=3)
    ours, literal = (statistics.median(found[name]) for name in sides)
    ratio = median_ratio(found["ours"], found["literal"])
    within = statistics.median(BUDGET_MS / figure for figure in found["ours"])
    name = f"positions of {TOKENS:,} tokens, ms"
    return [
        Row(metric=name, ours=ours, baseline=literal, ratio=ratio, target=5.0, equal=equal),
        Row(metric=f"{name}, against 1 ms", ours=ours, baseline=BUDGET_MS, ratio=within, target=1.0),
    ]


def one_pass(*, supervised_only: bool, tokens: int) -> Tensor:
    """Run forward and backward; returns the loss."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    text = TextSettings(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, attention_head_dim=64,
    )  # fmt: skip
    towers = {
        "vision": VisionSettings(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
                                 force_image_size=448, max_image_size=448),
        "audio": AudioSettings(d_model=16, encoder_layers=1, encoder_attention_heads=1, encoder_ffn_dim=16),
    }  # fmt: skip
    model = ArcVideoForConditionalGeneration(ArcVideoConfig.from_settings(ModelSettings(text=text, **towers)))
    ids = torch.randint(0, VOCABULARY, (1, tokens))
    labels = ids.clone()
    labels[:, : -min(LABELS, tokens // 2)] = -100
    loss = model(ids, labels=labels, supervised_only=supervised_only).loss
    loss.backward()
    return loss.detach()


def peak_megabytes(side: str) -> float:
    """Return the peak memory of a process that makes one pass, above one over 64 tokens."""
    whole, small = (
        float(subprocess.check_output([sys.executable, "-m", "benchmarks.model", side, str(tokens)], text=True))
        for tokens in (TOKENS, 64)
    )
    return whole - small


def memory_rows() -> list[Row]:
    losses = [one_pass(supervised_only=few, tokens=512) for few in (False, True)]
    equal = bool(torch.allclose(*losses, atol=1e-5))
    ours, full = peak_megabytes("labelled"), peak_megabytes("full")
    name = f"peak memory of a {TOKENS:,}-token sample, MB"
    return [Row(metric=name, ours=ours, baseline=full, ratio=full / ours, target=4.0, equal=equal)]


def main() -> int:
    notes = [
        f"memory above a 64-token pass, fp32, {LABELS} labels, vocabulary {VOCABULARY:,} (an eighth of the released)",
        f"one copy of fp32 logits at the released vocabulary: {TOKENS * 128_256 * 4 / 1e9:.1f} GB, "
        f"at labels only {LABELS * 128_256 * 4 / 1e9:.2f} GB (computed, not measured)",
    ]
    return report("model", position_rows() + memory_rows(), notes=notes)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        one_pass(supervised_only=sys.argv[1] == "labelled", tokens=int(sys.argv[2]))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        sys.exit(0)
    sys.exit(main())
