"""Clips per second from files to what the towers read: ours against a straightforward pipeline (`make bench-data`).

The peer does what most training scripts do: PyAV decodes every frame in order, the sampled ones go through PIL (stamp,
resize), the sound through the resampler and Whisper's log-mel, and a Hugging Face style collator pads ids and builds a
dense attention mask. Both sides use two workers, the same sampling rule and the same stamps, and are compared bit by
bit first.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import torch
import whisper
from PIL import Image

from arcvideo.decoding.cache import FrameCache
from arcvideo.decoding.pool import MediaPool
from arcvideo.feed.collate import Rendered, collate
from arcvideo.layout import MediaLayout
from arcvideo.media import overlay
from arcvideo.media.clip import to_media
from arcvideo.media.frames import plan_frames, stamp_text
from arcvideo.media.settings import FrameCacheSettings
from arcvideo.model.disk.tokenizer import build_tiny_tokenizer
from arcvideo.render import render_branch, render_prefix, special_ids
from arcvideo.types import Media, Sample, Turn
from benchmarks.table import Row, interleaved, report

LAYOUT = MediaLayout()
SECONDS, FPS, WIDTH, HEIGHT, RATE = 30, 30, 1280, 720, 48_000
WORKERS = 2
WARM_PASSES = 5
"""Readings of all cached clips per figure: one takes about a second, too short beside half a minute of the peer's."""
Padded = dict[str, torch.Tensor]


def make_clip(path: Path, *, seed: int) -> int:
    """Write a clip of moving texture and a chirp, unless it is there; returns its size in bytes."""
    if not path.exists():
        partial = path.with_suffix(".partial.mp4")
        _write_clip(partial, seed=seed)
        partial.rename(path)
    return path.stat().st_size


def _write_clip(path: Path, *, seed: int) -> None:
    rng = np.random.default_rng(seed)
    texture = np.asarray(
        Image.fromarray(rng.integers(0, 255, (90, 160, 3), dtype=np.uint8)).resize((2 * WIDTH, HEIGHT + 200))
    )
    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "23"})
        video.width, video.height, video.pix_fmt, video.gop_size = WIDTH, HEIGHT, "yuv420p", 60
        audio = file.add_stream("aac", rate=RATE, layout="stereo")
        for number in range(SECONDS * FPS):
            left, top = (number * (1 + seed % 3)) % WIDTH, int(100 + 99 * np.sin(number / 40))
            pixels = np.ascontiguousarray(texture[top : top + HEIGHT, left : left + WIDTH])
            file.mux(video.encode(av.VideoFrame.from_ndarray(pixels)))
        file.mux(video.encode(None))
        times = np.arange(SECONDS * RATE) / RATE
        sound = np.stack([np.sin(2 * np.pi * (200 + 40 * channel + 30 * times) * times) for channel in (1, 2)]) * 0.3
        frame = av.AudioFrame.from_ndarray(sound.astype(np.float32), format="fltp", layout="stereo")
        frame.sample_rate = RATE
        file.mux(audio.encode(frame))
        file.mux(audio.encode(None))


def peer_media(path: str) -> tuple[np.ndarray, np.ndarray]:
    """(F, S, S, 3) uint8 and (C, M, T) float32, by the book: everything is decoded in order."""
    data = Path(path).read_bytes()
    with av.open(io.BytesIO(data)) as file:
        stream = file.streams.video[0]
        plan = plan_frames(frame_count=stream.frames, fps=float(stream.average_rate or 0), max_frames=LAYOUT.max_frames)
        images = []
        for number, frame in enumerate(file.decode(stream)):
            if number in plan.indices:
                pixels = np.asarray(frame.to_image()).copy()
                overlay.stamp(pixels, text=stamp_text(plan.spans[plan.indices.index(number)]))
                side = (LAYOUT.image_size, LAYOUT.image_size)
                images.append(np.asarray(Image.fromarray(pixels).resize(side, Image.Resampling.BICUBIC)))
    with av.open(io.BytesIO(data)) as file:
        resampler = av.AudioResampler(format="fltp", rate=16_000)
        pieces = [part.to_ndarray() for frame in file.decode(audio=0) for part in resampler.resample(frame)]
        pieces += [part.to_ndarray() for part in resampler.resample(None)]
    waveform = np.concatenate(pieces, axis=1).mean(axis=0, dtype=np.float32).clip(-1, 1)
    waveform = whisper.pad_or_trim(waveform, SECONDS * 16_000)
    mel = whisper.log_mel_spectrogram(torch.from_numpy(waveform), n_mels=LAYOUT.mel_bins).numpy()
    return np.stack(images), mel[None]


def padded(ids: Sequence[np.ndarray]) -> Padded:
    """Ids, positions and a dense causal mask per row, as collators that know no segments make them."""
    width = max(map(len, ids))
    rows = torch.stack([torch.nn.functional.pad(torch.from_numpy(row), (0, width - len(row))) for row in ids])
    real = torch.stack([torch.arange(width) < len(row) for row in ids])
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    return {
        "input_ids": rows,
        "labels": torch.where(real, rows, -100),
        "position_ids": torch.arange(width).expand(len(ids), width).clone(),
        "attention_mask": causal[None] & real[:, None, :],
    }


def sample_row(media: Media, *, tokenizer: object, answer: str = "a short video of moving texture") -> Rendered:
    """One clip with one question."""
    sample = Sample(
        key=f"{media.key}/0",
        task="caption",
        turns=(Turn(question="Describe the video content.", answer=answer),),
        media_key=media.key,
        truth={},
    )
    prefix = render_prefix(frame_count=media.frame_count, before="", tokenizer=tokenizer, layout=LAYOUT)
    branch = render_branch(sample, tokenizer=tokenizer, wording="arc")
    return Rendered(prefix=prefix, media=(media,), samples=(sample,), branches=(branch,))


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def clip_rows(paths: Sequence[Path], *, folder: Path, tokenizer: object, rounds: int) -> tuple[list[Row], list[str]]:
    """Cold and warm against the peer, with equality checked first."""
    names = [str(path) for path in paths]
    cache = FrameCache(FrameCacheSettings(path=str(folder / "cache")), layout=LAYOUT)
    keys = [cache.key(path.name) for path in paths]
    with (
        MediaPool(count=WORKERS) as pool,
        ThreadPoolExecutor(WORKERS) as threads,
        ProcessPoolExecutor(WORKERS, initializer=torch.set_num_threads, initargs=(1,)) as processes,
    ):

        def cold_one(path: Path) -> Media:
            return to_media(pool.read_clip(path.read_bytes(), name=path.name, layout=LAYOUT), layout=LAYOUT)

        def warm_one(key: str) -> Media:
            media = cache.load(key)
            assert media is not None, f"{key} is missing from the cache"
            return media

        def packed(clips: Sequence[Media]) -> None:
            rows = [sample_row(media, tokenizer=tokenizer) for media in clips]
            collate(rows, specials=special_ids(tokenizer), weighting="sqrt")

        def warm() -> None:
            packed(list(threads.map(warm_one, keys)))

        def peer() -> None:
            clips = list(processes.map(peer_media, names))
            rows = [sample_row(stand_in(pixels), tokenizer=tokenizer) for pixels, _ in clips]
            for row in rows:  # batches of one: dense masks of twenty clips would not fit
                padded([np.concatenate([row.prefix, row.branches[0].ids])])

        ours, theirs = cold_one(paths[0]), peer_media(names[0])
        equal = np.array_equal(ours.pixels.permute(0, 2, 3, 1).numpy(), theirs[0])  # type: ignore[union-attr]
        drift = float(np.abs(ours.mel.numpy() - theirs[1]).max())  # type: ignore[union-attr]
        lost = np.abs(ours.pixels.numpy().astype(int) - cache.save(keys[0], ours).pixels.numpy()).mean()  # type: ignore[union-attr]
        first = [cache.save(key, media) for key, media in zip(keys, threads.map(cold_one, paths), strict=True)]
        again = list(threads.map(warm_one, keys))
        same = all(
            torch.equal(one.pixels, other.pixels) and torch.equal(one.mel, other.mel)  # type: ignore[arg-type]
            for one, other in zip(first, again, strict=True)
        )
        del first, again
        list(processes.map(peer_media, names[:WORKERS]))  # starts the peer's processes; ours have started
        seconds = interleaved(
            {
                "peer": lambda: timed(peer),
                "cold": lambda: timed(lambda: packed(list(threads.map(cold_one, paths)))),
                "warm": lambda: timed(lambda: [warm() for _ in range(WARM_PASSES)]) / WARM_PASSES,
            },
            rounds=rounds,
            warm_up=0,
        )
    best = {name: len(paths) / statistics.median(figures) for name, figures in seconds.items()}
    rows = [
        Row(metric=f"{name}, clips/s", ours=best[side], baseline=best["peer"], ratio=best[side] / best["peer"],
            target=target, equal=checked)
        for name, side, target, checked in (
            ("decode to batch, cold", "cold", 1.5, equal and drift < 1e-4),
            ("decode to batch, warm frame cache", "warm", 40.0, same),
        )
    ]  # fmt: skip
    spread = "; ".join(
        f"{side} {', '.join(f'{figure:.2f}' for figure in figures)}" for side, figures in seconds.items()
    )
    return rows, [
        f"frames are equal: {equal}; log-mels differ by {drift:.1e} at most; "
        f"cached frames are the same each time, and {lost:.1f} levels of 255 from decoded ones on average",
        f"seconds of each round: {spread}",
    ]


def stand_in(pixels: np.ndarray) -> Media:
    return Media(key="peer", frame_count=len(pixels), seconds=len(pixels), has_video=True, has_audio=True)


def collate_row(*, tokenizer: object) -> Row:
    """Milliseconds to pack one row of 17.7k tokens, against the 5 ms that are allowed."""
    frames = 150
    text = "a short video of moving texture and then some more of it " * 40
    clip = Media(key="c", frame_count=frames, seconds=frames, has_video=True, has_audio=True)
    rendered = sample_row(clip, tokenizer=tokenizer, answer=text)
    specials = special_ids(tokenizer)
    tokens = len(rendered.prefix) + len(rendered.branches[0].ids)
    figures = [timed(lambda: collate([rendered], specials=specials, weighting="sqrt")) * 1e3 for _ in range(30)]
    ours = statistics.median(figures)
    return Row(metric=f"collate of a {tokens}-token pack, ms (baseline: what is allowed)", ours=ours, baseline=5.0,
               ratio=5.0 / ours, target=1.0)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder in which the clips are kept for the next time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = build_tiny_tokenizer(
        ["Describe the video content. a short video of moving texture and some more of it"]
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        clips = options.keep or folder
        clips.mkdir(parents=True, exist_ok=True)
        paths = [clips / f"clip-{number:02d}.mp4" for number in range(options.clips)]
        with ThreadPoolExecutor(WORKERS) as threads:
            sizes = list(threads.map(lambda number: make_clip(paths[number], seed=number), range(options.clips)))
        rate = statistics.mean(sizes) * 8 / SECONDS / 1e6
        rows, notes = clip_rows(paths, folder=folder, tokenizer=tokenizer, rounds=options.rounds)
        cached = sum(file.stat().st_size for file in (folder / "cache").glob("??/*")) / options.clips / 1e6
    notes += [
        f"{options.clips} clips of {SECONDS} s, {WIDTH}x{HEIGHT}, {FPS} fps, H.264 + AAC at {rate:.2f} Mbit/s; "
        f"{WORKERS} workers; frames of {LAYOUT.image_size} px; {cached:.1f} MB a clip in the cache",
    ]
    return report("data", [*rows, collate_row(tokenizer=tokenizer)], notes=notes)


if __name__ == "__main__":
    sys.exit(main())
