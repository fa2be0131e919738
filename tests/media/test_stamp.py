from __future__ import annotations

import numpy as np
import pytest

from arcvideo.media.frames import stamp
from arcvideo.media.read import resize

TEXT = "00:00:03-00:00:04"


def _stamped(width: int, height: int, text: str = TEXT) -> np.ndarray:
    frame = np.full((height, width, 3), 90, dtype=np.uint8)
    stamp(frame, text=text)
    return frame


def _changed(frame: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero((frame != 90).any(axis=2))
    return columns.min(), rows.min(), columns.max(), rows.max()


def test_box_keeps_the_reference_corner_and_font_size(golden_tensors):
    """The text is as wide as the font makes it, so the left and lower edges may differ from Arial's by a little."""
    for number in (0, 1):
        width, height, _, _, size, left, top, right, bottom = golden_tensors[f"overlay{number}.geometry"].tolist()
        x0, y0, x1, y1 = _changed(_stamped(width, height))
        assert (x1, y0) == (right, top)
        assert abs(y1 - bottom) <= 0.1 * size
        assert 0.9 <= (x1 - x0) / (right - left) <= 1.25
        assert size == int(0.05 * height)


def test_box_is_opaque_black_with_white_text():
    frame = _stamped(720, 1280)
    x0, y0, x1, y1 = _changed(frame)
    box = frame[y0 : y1 + 1, x0 : x1 + 1]
    assert (box[0] == 0).all()
    assert (box[:, 0] == 0).all()
    assert box.max() == 255
    assert 0.05 < (box > 128).mean() < 0.5


def test_different_seconds_look_different_after_resizing():
    """Every pair of neighbouring stamps differs by much more than rounding noise at the tiny model's size."""
    seen = [resize(_stamped(128, 192, f"00:00:0{s}-00:00:0{s + 1}"), size=128).astype(int) for s in range(8)]
    for one in range(8):
        for other in range(one):
            assert np.abs(seen[one] - seen[other]).max() > 60


@pytest.mark.parametrize("size", [(16, 16), (40, 12), (8, 4), (1, 1), (30, 400)])
def test_frames_too_small_for_the_box_are_stamped_as_far_as_it_fits(size):
    assert _stamped(*size).shape == (size[1], size[0], 3)


def test_an_unreadable_font_is_named():
    with pytest.raises(ValueError, match="no-such"):
        stamp(np.zeros((64, 64, 3), np.uint8), text=TEXT, font="no-such.ttf")


def test_resize_equals_the_reference(golden_tensors):
    resized = resize(golden_tensors["resize.frame_u8"].numpy(), size=64)
    assert np.array_equal(resized, golden_tensors["resize.resized_u8"].numpy())
