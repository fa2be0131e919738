from __future__ import annotations

from pathlib import Path

from PIL import Image

from arcvideo.rollout.timeline import Asked, draw


def asked(**changes: object) -> Asked:
    values = {
        "question": "When is the red circle seen?",
        "key": "train-000001/2",
        "true": (2.0, 5.0),
        "said": [(2.0, 5.0), (6.0, 8.0), None],
        "texts": ["00:00:02 - 00:00:05", "00:00:06 - 00:00:08", "I do not know"],
        "seconds": 8.0,
    }
    return Asked(**(values | changes))  # type: ignore[arg-type]


def test_bars_stand_where_the_seconds_are(tmp_path: Path) -> None:
    draw([asked()], title="step 3", path=tmp_path / "rollouts.png")
    image = Image.open(tmp_path / "rollouts.png").convert("RGB")
    width = (900 - 36 - 190) / 8

    def colour(second: float, *, row: int) -> tuple[int, ...]:
        return image.getpixel((int(36 + second * width), 24 + 26 + row * 16 + 6))

    assert colour(3.5, row=0) == (60, 60, 60)
    assert colour(1.5, row=0) == (255, 255, 255)
    assert colour(3.5, row=1) == (50, 140, 70)  # the true span itself
    assert colour(6.5, row=2) == (200, 70, 50)  # no overlap
    assert colour(3.5, row=2) == (255, 255, 255)
    assert [path.name for path in tmp_path.iterdir()] == ["rollouts.png"]


def test_odd_spans_and_long_questions_stay_inside(tmp_path: Path) -> None:
    odd = asked(said=[(0.0, 900.0), (7.9, 7.9)], texts=["", ""], question="why " * 200, seconds=3600.0)
    draw([odd, asked()], title="step 0", path=tmp_path / "rollouts.png")
    assert Image.open(tmp_path / "rollouts.png").size[0] == 900
