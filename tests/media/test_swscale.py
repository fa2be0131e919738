"""The second way to the model's size: the same frames and stamps, from the decoder's own planes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from arcvideo.decoding.pool import MediaPool
from arcvideo.media.clip import read_clip
from tests.media.conftest import make_media, picture, with_display_matrix
from tests.media.files import moving

_ROUNDING = 3
"""Levels: planes and colours are each rounded once more or less on the way, and each rounding is below one level."""
_EDGE = 4
"""Pixels at the border, where the kernels of the two leave out what lies beyond in their own ways."""


def ramps(count: int, *, size: tuple[int, int] = (480, 320)) -> list[np.ndarray]:
    """Grey that rises evenly, which every cubic kernel reproduces; (width, height)."""
    row = np.linspace(20, 180, size[0])
    column = np.linspace(0, 40, size[1])
    still = (row[None, :] + column[:, None]).astype(np.uint8)
    return [np.repeat(still[:, :, None], 3, axis=2)] * count


def both(data: bytes, layout) -> tuple[torch.Tensor, torch.Tensor]:
    exact, fast = (read_clip(data, name="a", layout=layout, resize=how) for how in ("pillow", "swscale"))
    assert exact.key != fast.key
    assert torch.equal(exact.frame_times, fast.frame_times)
    return exact.frames.int(), fast.frames.int()


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1)])
def test_an_even_picture_is_the_same_up_to_rounding_however_it_is_turned(layout, matrix) -> None:
    data = with_display_matrix(make_media(ramps(8)), matrix=matrix)
    exact, fast = both(data, layout)
    assert exact.shape == fast.shape
    inside = (exact - fast).abs()[:, :, 48:-_EDGE, _EDGE:-_EDGE]  # the stamp lies above
    assert inside.max() <= _ROUNDING


def test_the_stamp_is_where_it_was_and_says_the_same(layout) -> None:
    exact, fast = both(make_media([np.full((640, 640, 3), 120, np.uint8)] * 8), layout)
    # The box is moved to whole pixels, so that its outline may be off by one; its inside is not moved further.
    dark = [(frames < 60).all(dim=1) for frames in (exact, fast)]
    for one, other in zip(*dark, strict=True):
        places = [(rows.min(), rows.max(), columns.min(), columns.max()) for rows, columns in
                  (mask.nonzero(as_tuple=True) for mask in (one, other))]  # fmt: skip
        assert all(abs(int(a) - int(b)) <= 1 for a, b in zip(*places, strict=True))
    assert not torch.equal(fast[0], fast[1])


def test_what_needs_no_resizing_is_the_same_to_the_bit(layout) -> None:
    side = layout.image_size
    for data in (make_media(moving(8, size=(side, side))), picture("png", size=(300, 200))):
        exact, fast = both(data, layout)
        assert torch.equal(exact, fast)


def test_another_process_gives_the_very_same(layout) -> None:
    data = make_media(moving(8, size=(320, 240)))
    with MediaPool() as pool:
        there = pool.read_clip(data, name="a", layout=layout, resize="swscale")
    here = read_clip(data, name="a", layout=layout, resize="swscale")
    assert there.key == here.key
    assert torch.equal(there.frames, here.frames)


def test_an_unknown_way_is_refused_by_name(layout) -> None:
    with pytest.raises(ValueError, match=r"'lanczos'.*pillow, swscale"):
        read_clip(picture(), name="a", layout=layout, resize="lanczos")
