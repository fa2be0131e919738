"""Clips to decode, and what libav alone takes for their frames: the floor of decoding."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from PIL import Image

from arcvideo.layout import MediaLayout
from arcvideo.media.clip import read_clip, to_media
from arcvideo.media.frames import plan_frames
from arcvideo.media.settings import RESIZERS
from arcvideo.types import Media
from benchmarks.table import Row, interleaved

LAYOUT = MediaLayout()
SECONDS, FPS, WIDTH, HEIGHT, RATE = 30, 30, 1280, 720, 48_000
FLOOR_SECONDS = 10
FLOORS = {(486, 864): 1.5, (720, 1280): 1.3, (1080, 1920): 1.15}
"""Width and height of clips -> CPU that the whole way of a clip may take, in times of libav alone."""


def make_clip(
    path: Path, *, seed: int, size: tuple[int, int] = (WIDTH, HEIGHT), group: int = 60, seconds: int = SECONDS
) -> int:
    """Write a clip of moving texture and a chirp, unless it is there; returns its size in bytes."""
    if not path.exists():
        partial = path.with_suffix(".partial.mp4")
        _write_clip(partial, seed=seed, size=size, group=group, seconds=seconds)
        partial.rename(path)
    return path.stat().st_size


def _write_clip(path: Path, *, seed: int, size: tuple[int, int], group: int, seconds: int) -> None:
    rng, (width, height) = np.random.default_rng(seed), size
    texture = np.asarray(
        Image.fromarray(rng.integers(0, 255, (90, 160, 3), dtype=np.uint8)).resize((2 * width, height + 200))
    )
    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "23"})
        video.width, video.height, video.pix_fmt, video.gop_size = width, height, "yuv420p", group
        audio = file.add_stream("aac", rate=RATE, layout="stereo")
        for number in range(seconds * FPS):
            left, top = (number * (1 + seed % 3)) % width, int(100 + 99 * np.sin(number / 40))
            pixels = np.ascontiguousarray(texture[top : top + height, left : left + width])
            file.mux(video.encode(av.VideoFrame.from_ndarray(pixels)))
        file.mux(video.encode(None))
        times = np.arange(seconds * RATE) / RATE
        sound = np.stack([np.sin(2 * np.pi * (200 + 40 * channel + 30 * times) * times) for channel in (1, 2)]) * 0.3
        frame = av.AudioFrame.from_ndarray(sound.astype(np.float32), format="fltp", layout="stereo")
        frame.sample_rate = RATE
        file.mux(audio.encode(frame))
        file.mux(audio.encode(None))


def cpu(work: Callable[[], object]) -> float:
    """Seconds of this process that it takes."""
    began = time.process_time()
    work()
    return time.process_time() - began


def libav_alone(data: bytes) -> int:
    """Decode the frames that stand for a clip and nothing that they do not need; returns how many there were."""
    with av.open(io.BytesIO(data)) as file:
        stream = file.streams.video[0]
        stream.codec_context.thread_count = 1
        packets = [packet for packet in file.demux(stream) if packet.size]
        times = sorted(packet.pts for packet in packets)
        plan = plan_frames(frame_count=len(times), fps=float(stream.average_rate or 0), max_frames=LAYOUT.max_frames)
        wanted, count = {times[index] for index in plan.indices}, 0
        for packet in (*packets, None):
            if packet is not None:
                stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            count += sum(frame.pts in wanted for frame in stream.codec_context.decode(packet))
            if count == len(wanted):
                break
    return count


def floor_rows(folder: Path, *, rounds: int) -> list[Row]:
    """CPU of a clip on its whole way to the towers, in one process, against libav's for its picture alone."""
    rows = []
    for (width, height), factor in FLOORS.items():
        path = folder / f"floor-{width}-{FLOOR_SECONDS}.mp4"
        make_clip(path, seed=0, size=(width, height), group=150, seconds=FLOOR_SECONDS)
        data = path.read_bytes()

        def whole(resize: str, data: bytes = data) -> Media:
            return to_media(read_clip(data, name="clip", layout=LAYOUT, resize=resize), layout=LAYOUT)

        complete = libav_alone(data) == whole("pillow").frame_count
        seconds = interleaved(
            {
                "libav": lambda data=data: cpu(lambda: libav_alone(data)),  # type: ignore[misc]
                **{how: lambda how=how: cpu(lambda: whole(how)) for how in RESIZERS},  # type: ignore[misc]
            },
            rounds=rounds,
        )
        for how in RESIZERS:
            ours, floor = min(seconds[how]), min(seconds["libav"])
            rows.append(
                Row(metric=f"CPU of a {width}p clip, {how}, s (baseline: libav's picture alone)", ours=ours,
                    baseline=floor, ratio=floor / ours, target=1 / factor, bound=1.0, equal=complete)
            )  # fmt: skip
    return rows
