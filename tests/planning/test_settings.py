from __future__ import annotations

import subprocess
import sys

import pytest

from arcvideo.layout import MediaLayout
from arcvideo.planning.settings import DataSettings, QuarantineSettings, SourceSettings
from arcvideo.structured import SettingsError, filled


def test_layouts_of_both_sizes() -> None:
    tiny = MediaLayout(image_size=128, mel_bins=80, audio_positions=400, audio_pooling=10)
    assert (tiny.grid, tiny.tokens_per_frame, tiny.chunk_seconds) == (2, 8, 8)
    assert (MediaLayout().tokens_per_frame, MediaLayout().chunk_seconds) == (112, 30)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MediaLayout(image_size=100), "image_size"),
        (lambda: MediaLayout(mel_bins=64), "mel_bins"),
        (lambda: SourceSettings(style="loud"), "style"),
        (lambda: SourceSettings(tasks={"mcq": -1.0}), "tasks"),
        (lambda: SourceSettings(drop_video=0.7, drop_audio=0.7), "drop_video"),
        (lambda: SourceSettings(tasks={"mcq": 0.0}), "tasks="),
        (lambda: SourceSettings(weight=float("nan")), "weight="),
        (lambda: SourceSettings(repeat=float("inf")), "repeat="),
        (lambda: SourceSettings(fraction=float("nan")), "fraction="),
        (lambda: SourceSettings(drop_audio=float("nan")), "drop_audio="),
        (lambda: SourceSettings(items_per_clip=-1), "items_per_clip="),
        (lambda: SourceSettings(max_clips=0), "max_clips="),
        (lambda: DataSettings(token_budget=0), "token_budget"),
        (lambda: DataSettings(min_frames=0), "min_frames"),
        (lambda: DataSettings(length_weighting="none"), "length_weighting"),
        (lambda: DataSettings(over_budget="cut"), "fewer_frames"),
        (lambda: QuarantineSettings(max_rate=2.0), "max_rate"),
    ],
)
def test_bad_settings_name_their_key(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    "values", [{"weight": 0}, {"weight": "nan"}, {"tasks": {"mcq": -1}}, {"style": "loud"}, {"drop_audio": 2}]
)
def test_bad_source_is_named_with_its_whole_key(values: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=rf"^data\.sources\.mine\.{next(iter(values))}"):
        filled(DataSettings, {"sources": {"mine": values}}, key="data")


def test_settings_do_not_import_torch() -> None:
    code = "import sys, arcvideo.planning.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
