import pytest
import torch

from arcvideo.model.positions import frame_ids, replace_newlines, video_ids, xd_positions
from tests.model.small import SPECIAL, text


def test_a_frame_has_begin_rows_end_between_its_markers():
    s = SPECIAL
    row = [s.image, s.image, s.newline]
    assert frame_ids(2, special=s).tolist() == [s.img_open, s.image, *row, *row, s.image, s.img_close]
    assert len(frame_ids(10, special=s)) == 114
    assert len(video_ids(10, frames=150, special=s)) == 17_102


def test_grid_cells_read_column_row_and_frame():
    ids = torch.cat([text(2, seed=0), video_ids(2, frames=2, special=SPECIAL), text(1, seed=1)])
    index, column, row, frame = xd_positions(ids, SPECIAL)
    assert index.tolist() == list(range(len(ids)))
    second = slice(15, 21)
    assert column[second].tolist() == [0, 1, 2, 0, 1, 2]
    assert row[second].tolist() == [0, 0, 0, 1, 1, 1]
    assert frame[second].tolist() == [1] * 6
    for plain in (0, 1, 2, 3, 4, 11, 12, 13, 14, 21, 22, 23, 24):
        assert column[plain] == row[plain] == frame[plain] == plain


def test_offset_moves_indices_and_leaves_grids():
    ids = torch.cat([text(2, seed=0), frame_ids(2, special=SPECIAL)])
    base, moved = xd_positions(ids, SPECIAL), xd_positions(ids, SPECIAL, offset=100)
    assert torch.equal(moved[0], base[0] + 100)
    assert torch.equal(moved[1:, 4:10], base[1:, 4:10])
    assert torch.equal(moved[1:, :4], base[1:, :4] + 100)


def test_restart_begins_again_after_every_end_of_document():
    frame = frame_ids(2, special=SPECIAL)
    end = torch.tensor([SPECIAL.end])
    ids = torch.cat([frame, end, frame, text(2, seed=0), end, text(3, seed=1)])
    positions = xd_positions(ids, SPECIAL, restart_after_eod=True)
    assert positions[0].tolist() == [*range(11), *range(13), *range(3)]
    assert positions[3, 13:19].tolist() == [0] * 6


def test_restart_leaves_a_last_document_without_end_plain():
    ids = torch.cat([torch.tensor([SPECIAL.end]), frame_ids(2, special=SPECIAL)])
    positions = xd_positions(ids, SPECIAL, restart_after_eod=True)
    assert torch.equal(positions, torch.tensor([0, *range(10)]).expand(4, -1))


def test_no_tokens_no_positions():
    empty = torch.zeros(0, dtype=torch.int64)
    assert xd_positions(empty, SPECIAL).shape == (4, 0)
    assert xd_positions(empty, SPECIAL, restart_after_eod=True).shape == (4, 0)


def test_newlines_become_image_ids():
    ids = replace_newlines(frame_ids(2, special=SPECIAL), special=SPECIAL)
    assert (ids == SPECIAL.image).sum() == 8
    assert SPECIAL.newline not in ids


@pytest.mark.parametrize("spoil", ["open", "close", "newline", "swap"])
def test_broken_frames_are_refused(spoil):
    ids = frame_ids(2, special=SPECIAL)
    if spoil == "open":
        ids = ids[1:]
    elif spoil == "close":
        ids = ids[:-1]
    elif spoil == "newline":
        ids = ids[ids != SPECIAL.newline]
    else:
        ids = ids.flip(0)
    with pytest.raises(ValueError, match="frame"):
        xd_positions(ids, SPECIAL)
