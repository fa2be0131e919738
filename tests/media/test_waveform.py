from __future__ import annotations

import pytest
import torch

from arcvideo.media.audio import cut_waveform, fit_waveform, mel_chunks, silent_seconds

RATE = 16_000


def _fit(seconds: float, *, frames: int, video: float | None, limit: int = 150):
    return fit_waveform(torch.ones(round(seconds * RATE)), frame_count=frames, video_seconds=video, max_frames=limit)


def test_cut_pad_and_duration_equal_the_reference(goldens):
    for case in goldens["audio"]:
        samples = case["samples"]
        cut = cut_waveform(torch.zeros(samples), pieces=150, seconds=300)
        assert cut.numel() == case["cut_len"]
        frames = min(150, -(-samples // RATE))
        span = fit_waveform(torch.zeros(samples), frame_count=frames, video_seconds=None, max_frames=150)
        assert span.waveform.numel() == case["padded_len"]
        assert span.seconds == case["duration"]


def test_long_sound_keeps_the_reference_pieces(goldens):
    case = next(case for case in goldens["audio"] if case["samples"] == 6_576_077)
    cut = cut_waveform(torch.arange(case["samples"]), pieces=150, seconds=300)
    pieces = cut.view(150, 32_000)
    for number, (start, end) in zip((0, 1, 2, 148, 149), case["segments"], strict=True):
        assert (int(pieces[number, 0]), int(pieces[number, -1]) + 1) == (start, end)


def test_log_mel_equals_the_reference(golden_tensors):
    wave = golden_tensors["mel.waveform_i16"].float() / 32768
    mel = mel_chunks(wave, mel_bins=128, chunk_samples=30 * RATE)
    assert mel.shape == (1, 128, 3000)
    torch.testing.assert_close(mel[0, :, :240], golden_tensors["mel.first_240"], atol=1e-4, rtol=0)
    torch.testing.assert_close(mel[0, :, -100:], golden_tensors["mel.tail_value"].expand(128, 100), atol=1e-4, rtol=0)


def test_chunks_are_independent_of_what_follows():
    """The loudness clamp of one chunk must not reach into another."""
    quiet, loud = torch.rand(8 * RATE) * 1e-3, torch.rand(8 * RATE)
    alone = mel_chunks(quiet, mel_bins=80, chunk_samples=8 * RATE)
    both = mel_chunks(torch.cat([quiet, loud]), mel_bins=80, chunk_samples=8 * RATE)
    assert both.shape == (2, 80, 800)
    assert torch.equal(alone[0], both[0])


def test_silence_has_its_own_mel():
    mel = mel_chunks(torch.zeros(RATE), mel_bins=80, chunk_samples=8 * RATE)
    assert mel.abs().min() > 0


@pytest.mark.parametrize(
    ("sound", "frames", "video", "seconds"),
    [
        (16.98, 17, 16.96, 17),  # a codec's padding
        (30.02, 30, 29.97, 30),  # one second more than frames: reference trains with duration = F
        (12.0, 17, 16.96, 17),  # sound stops early
        (20.0, 8, 7.5, 8),  # sound goes on
        (0.4, 1, 0.4, 1),
        (200.5, 150, 200.2, 201),  # above the limit the sound's own seconds count
        (120.0, 150, 200.0, 200),  # reference stops here: it has too few chunks
        (299.0, 150, 170.0, 170),
        (400.0, 150, 399.9, 300),
        (280.0, 150, 400.0, 300),
        (149.8, 150, 150.4, 150),
    ],
)
def test_seconds_match_the_frames(sound, frames, video, seconds):
    assert _fit(sound, frames=frames, video=video).seconds == seconds


def test_sound_alone_counts_its_own_seconds():
    assert _fit(3.2, frames=4, video=None).seconds == 4
    assert _fit(210.2, frames=150, video=None).seconds == 211
    assert _fit(500.0, frames=150, video=None).seconds == 300


def test_absent_sound_counts_the_seconds_of_the_picture():
    assert silent_seconds(frame_count=8, duration=7.5, max_frames=150) == 8
    assert silent_seconds(frame_count=150, duration=200.2, max_frames=150) == 201
    assert silent_seconds(frame_count=150, duration=900.0, max_frames=150) == 300


def test_a_chunk_that_is_no_whole_number_of_positions_is_refused():
    with pytest.raises(ValueError, match="320"):
        mel_chunks(torch.zeros(RATE), mel_bins=80, chunk_samples=1000)
