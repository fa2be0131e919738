"""The second picture decoder: the same frames by the same time stamps, pixels alike up to rounding."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from arcvideo.decoding.pool import MediaPool
from arcvideo.media import decode as decoding
from arcvideo.media import fast
from arcvideo.media.clip import read_clip
from arcvideo.media.decode import Decoded, decode
from arcvideo.media.fast import check_decoder
from arcvideo.media.picture import Selection
from arcvideo.media.settings import MediaLimits
from tests.media.conftest import grey_frames, make_media, tone, with_display_matrix
from tests.media.files import Picture, Sound, moving, with_edit, write

_ROUNDING = 1
"""Levels by which the two conversions to RGB may differ; with FFmpeg 5.1 they do not differ at all."""


@pytest.fixture(scope="module")
def torchcodec() -> None:
    try:
        check_decoder("torchcodec")
    except ValueError as error:
        pytest.skip(str(error))


def files() -> dict[str, Callable[[], bytes]]:
    x264 = {"preset": "medium", "crf": "12", "g": "12", "bf": "3"}
    odd = [n / 10 for n in range(10)] + [1.0] + [4.0 + n / 4 for n in range(8)]
    av1 = {"preset": "12", "svtav1-params": "keyint=12:lp=1"}
    x265 = {"preset": "fast", "x265-params": "log-level=none:pools=1:frame-threads=1"}
    turned = (0, 1, -1, 0)
    return {
        "h264": lambda: write(Picture(frames=moving(40), options=x264), container="mp4"),
        "h265": lambda: write(Picture(frames=moving(40), codec="libx265", options=x265), container="mp4"),
        "av1": lambda: write(Picture(frames=moving(40), codec="libsvtav1", options=av1)),
        "vp9": lambda: write(
            Picture(frames=moving(40), codec="libvpx-vp9", options={"cpu-used": "8"}), container="webm"
        ),
        "variable rate": lambda: write(Picture(frames=moving(19), times=odd, options=x264)),
        "late start": lambda: write(
            Picture(frames=moving(20), times=[1.7 + n / 4 for n in range(20)], options=x264),
            Sound(runs=[(1.7, tone(5))]),
        ),
        "two streams": lambda: write(
            Picture(frames=grey_frames(12), default=False), Picture(frames=moving(12, seed=1), options=x264)
        ),
        "turned": lambda: with_display_matrix(make_media(moving(12)), matrix=turned),
        "mirrored": lambda: with_display_matrix(make_media(moving(12)), matrix=(-1, 0, 0, 1)),
        "edit list": lambda: with_edit(
            write(Picture(frames=moving(12), options={"crf": "10", "bf": "0"}), container="mp4"),
            entries=[(2000, 1 << 13)],
        ),
    }


def middle(data: bytes, *, decoder: str) -> tuple[list[int], Decoded]:
    taken: list[int] = []

    def choose(facts: object) -> Selection:
        count: int = facts.frame_count  # type: ignore[attr-defined]
        taken[:] = [0, count // 3, count // 2, count // 2, count - 1]
        return Selection(indices=tuple(taken))

    return taken, decode(data, name="clip", choose=choose, limits=MediaLimits(), decoder=decoder)


@pytest.mark.parametrize("kind", files())
def test_both_decoders_show_the_same_frames(torchcodec: None, kind: str) -> None:
    data = files()[kind]()
    (indices, one), (same, other) = (middle(data, decoder=name) for name in ("pyav", "torchcodec"))
    assert indices == same
    assert one.frames is not None
    assert other.frames is not None
    worst = 0
    for number, (frame, twin) in enumerate(zip(one.frames, other.frames, strict=True)):
        assert frame.shape == twin.shape, (kind, number)
        worst = max(worst, int(np.abs(frame.astype(int) - twin).max()))
    assert worst <= _ROUNDING


def test_torchcodec_is_what_decodes_where_it_can(torchcodec: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this, a fallback to PyAV everywhere would pass the comparison above."""
    fell_back: list[str] = []
    kinds: list[str] = []
    real = decoding.decode_frames

    def counted(*packets: object, **rest: object) -> object:
        fell_back.append(kinds[-1])
        return real(*packets, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(decoding, "decode_frames", counted)
    for kind, make in files().items():
        kinds.append(kind)
        middle(make(), decoder="torchcodec")
    assert set(fell_back) <= {"mirrored", "edit list"}
    assert "mirrored" in fell_back


def test_clips_agree_and_have_keys_of_their_own(torchcodec: None, short_video: bytes, layout: object) -> None:
    with MediaPool(limits=MediaLimits(deadline_seconds=120)) as pool:
        one, other = (
            pool.read_clip(short_video, name="a.mp4", layout=layout, decoder=name)  # type: ignore[arg-type]
            for name in ("pyav", "torchcodec")
        )
    assert one.key != other.key
    assert one.frames is not None
    assert other.frames is not None
    assert (one.frames.int() - other.frames.int()).abs().max() <= _ROUNDING
    assert (one.waveform == other.waveform).all()  # type: ignore[union-attr]
    assert (one.frame_times == other.frame_times).all()


def test_its_absence_is_one_line_that_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "torchcodec").mkdir()
    (tmp_path / "torchcodec" / "__init__.py").write_text("raise OSError('libavutil.so.57: cannot open')\n")
    root = Path(fast.__file__).parents[2]
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(root)!r}]\n"
        "from arcvideo.media.fast import check_decoder\n"
        "try: check_decoder('torchcodec')\n"
        "except ValueError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert len(said.splitlines()) == 1
    for part in ("data.decoder=torchcodec", "libavutil.so.57", "apt-get install ffmpeg", "data.decoder=pyav"):
        assert part in said


def test_an_unknown_decoder_is_refused(short_video: bytes, layout: object) -> None:
    with pytest.raises(ValueError, match="pyav, torchcodec"):
        read_clip(short_video, name="a.mp4", layout=layout, decoder="decord")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pyav, torchcodec"):
        check_decoder("decord")
