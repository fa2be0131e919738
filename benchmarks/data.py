"""Clips per second from files to what the towers read: ours against a straightforward pipeline (`make bench-data`).

The peer does what most training scripts do: PyAV decodes every frame in order, the sampled ones go through PIL (stamp,
resize), the sound through the resampler and Whisper's log-mel, and a Hugging Face style collator pads ids and builds a
dense attention mask. Both sides use two workers, the same sampling rule and the same stamps, and are compared bit by
bit first. A second peer is webdataset's loader of the same frames, kept as JPEG. The floor of decoding is libav giving
the very frames that are needed and nothing else.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import torch
import webdataset
import whisper
from PIL import Image

from arcvideo.decoding.cache import FrameCache
from arcvideo.decoding.pool import MediaPool
from arcvideo.feed.collate import Rendered, collate
from arcvideo.media.clip import to_media
from arcvideo.media.frames import plan_frames, stamp, stamp_text
from arcvideo.media.settings import FrameCacheSettings
from arcvideo.model.disk.tokenizer import build_tiny_tokenizer
from arcvideo.render import render_branch, render_prefix, special_ids
from arcvideo.types import Media, Sample, Turn
from benchmarks.clip import FPS, HEIGHT, LAYOUT, SECONDS, WIDTH, cpu, floor_rows, make_clip
from benchmarks.table import Row, interleaved, report

WORKERS = 2
WARM_PASSES = 5
"""Readings of all cached clips per figure: one takes about a second, too short beside half a minute of the peer's."""
FORMS = ("jpeg", "raw")
Padded = dict[str, torch.Tensor]


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
                stamp(pixels, text=stamp_text(plan.spans[plan.indices.index(number)]))
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


def write_jpegs(clips: Sequence[Media], *, folder: Path, quality: int) -> str:
    """Write webdataset's shards of the frames, as the cache keeps them; returns their pattern."""
    folder.mkdir()
    for number in range(WORKERS):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for place, media in list(enumerate(clips))[number::WORKERS]:
                assert media.pixels is not None
                assert media.mel is not None
                files = {"mel.npy": _npy(media.mel.numpy())}
                for slot, frame in enumerate(media.pixels.permute(0, 2, 3, 1).numpy()):
                    stream = io.BytesIO()
                    Image.fromarray(frame).save(stream, "JPEG", quality=quality, subsampling="4:2:0", optimize=True)
                    files[f"{slot:03d}.jpg"] = stream.getvalue()
                for name, data in files.items():
                    entry = tarfile.TarInfo(f"{place:06d}.{name}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    return str(folder / f"{{0..{WORKERS - 1}}}.tar")


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def joined(sample: dict[str, object]) -> tuple[str, torch.Tensor, torch.Tensor]:
    """What webdataset decoded of a clip: its key, frames (F, S, S, 3) and mel."""
    names = sorted(name for name in sample if name.endswith(".jpg"))
    frames = torch.from_numpy(np.stack([sample[name] for name in names]))  # type: ignore[arg-type]
    return str(sample["__key__"]), frames, torch.from_numpy(sample["mel.npy"])  # type: ignore[arg-type]


def jpeg_loader(pattern: str) -> torch.utils.data.DataLoader:
    """webdataset's own way, in processes that live on from one pass to the next."""
    data = webdataset.WebDataset(pattern, shardshuffle=False).decode("rgb8").map(joined)
    return torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=WORKERS, persistent_workers=True, worker_init_fn=_one_thread
    )


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def clip_rows(paths: Sequence[Path], *, folder: Path, tokenizer: object, rounds: int) -> tuple[list[Row], list[str]]:
    """Cold and warm against the peers, with equality checked first."""
    names = [str(path) for path in paths]
    caches = {form: FrameCache(FrameCacheSettings(path=str(folder / form), form=form), layout=LAYOUT) for form in FORMS}
    with (
        MediaPool(count=WORKERS) as pool,
        ThreadPoolExecutor(WORKERS) as threads,
        ProcessPoolExecutor(WORKERS, initializer=torch.set_num_threads, initargs=(1,)) as processes,
    ):

        def cold_one(path: Path) -> Media:
            return to_media(pool.read_clip(path.read_bytes(), name=path.name, layout=LAYOUT), layout=LAYOUT)

        def warm_clips(form: str) -> list[Media]:
            clips = list(threads.map(caches[form].load, [caches[form].key(path.name) for path in paths]))
            assert None not in clips, "a clip is missing from the cache"
            return clips  # type: ignore[return-value]

        def packed(clips: Sequence[Media]) -> None:
            rows = [sample_row(media, tokenizer=tokenizer) for media in clips]
            collate(rows, specials=special_ids(tokenizer), weighting="sqrt")

        def peer() -> None:
            clips = list(processes.map(peer_media, names))
            rows = [sample_row(stand_in(pixels), tokenizer=tokenizer) for pixels, _ in clips]
            for row in rows:  # batches of one: dense masks of twenty clips would not fit
                padded([np.concatenate([row.prefix, row.branches[0].ids])])

        def loaded() -> None:
            packed([stand_in(frames) for _, frames, _ in loader])

        decoded = list(threads.map(cold_one, paths))
        theirs = peer_media(names[0])
        assert decoded[0].pixels is not None
        equal = np.array_equal(decoded[0].pixels.permute(0, 2, 3, 1).numpy(), theirs[0])
        drift = float(np.abs(decoded[0].mel.numpy() - theirs[1]).max())  # type: ignore[union-attr]
        for cache in caches.values():
            for path, media in zip(paths, decoded, strict=True):
                cache.save(cache.key(path.name), media)
        same = {"raw": all(map(_alike, decoded, warm_clips("raw")))}
        loader = jpeg_loader(write_jpegs(decoded, folder=folder / "tars", quality=FrameCacheSettings().quality))
        kept = warm_clips("jpeg")
        others = {int(key): (frames, mel) for key, frames, mel in loader}
        same["jpeg"] = all(
            torch.equal(media.pixels.permute(0, 2, 3, 1), frames) and torch.equal(media.mel, mel)  # type: ignore[union-attr, arg-type]
            for media, (frames, mel) in zip(kept, (others[number] for number in range(len(kept))), strict=True)
        )
        lost = np.mean([np.abs(one.pixels.numpy().astype(int) - other.pixels.numpy()).mean()  # type: ignore[union-attr]
                        for one, other in zip(decoded[:2], kept[:2], strict=True)])  # fmt: skip
        share = _share_of_jpeg(folder / "tars", cache=caches["jpeg"], key=caches["jpeg"].key(paths[0].name))
        del decoded, kept, others
        list(processes.map(peer_media, names[:WORKERS]))  # starts the peer's processes; ours have started
        seconds = interleaved(
            {
                "peer": lambda: timed(peer),
                "cold": lambda: timed(lambda: packed(list(threads.map(cold_one, paths)))),
                "webdataset": lambda: timed(lambda: [loaded() for _ in range(WARM_PASSES)]) / WARM_PASSES,
                **{
                    form: lambda form=form: timed(lambda: [packed(warm_clips(form)) for _ in range(WARM_PASSES)])  # type: ignore[misc]
                    / WARM_PASSES
                    for form in FORMS
                },
            },
            rounds=rounds,
            warm_up=0,
        )  # fmt: skip
    best = {name: len(paths) / statistics.median(figures) for name, figures in seconds.items()}
    sides = [("decode to batch, cold", "cold", "peer", 1.5, equal and drift < 1e-4)]
    for form in FORMS:
        sides.append((f"decode to batch, warm frame cache, {form}", form, "peer", 40.0, same[form]))
        sides.append(
            (f"the same against webdataset's loader of JPEG frames, {form}", form, "webdataset", 2.0, same[form])
        )
    rows = [
        Row(metric=f"{name}, clips/s", ours=best[side], baseline=best[other], ratio=best[side] / best[other],
            target=target, equal=checked)
        for name, side, other, target, checked in sides
    ]  # fmt: skip
    spread = "; ".join(
        f"{side} {', '.join(f'{figure:.2f}' for figure in figures)}" for side, figures in seconds.items()
    )
    sizes = {form: sum(file.stat().st_size for file in (folder / form).glob("??/*")) / len(paths) for form in FORMS}
    return rows, [
        f"frames are equal: {equal}; log-mels differ by {drift:.1e} at most; cached frames are the same each time: "
        f"JPEG ones those that webdataset reads, {lost:.1f} levels of 255 from decoded ones on average, raw ones the "
        "decoded ones",
        f"Pillow decoding the JPEGs takes {share:.0%} of the CPU of reading a clip of JPEG frames from the cache",
        f"a clip in the cache: {', '.join(f'{form} {size / 1e6:.1f} MB' for form, size in sizes.items())}",
        f"seconds of each round: {spread}",
    ]


def _alike(one: Media, other: Media) -> bool:
    return torch.equal(one.pixels, other.pixels) and torch.equal(one.mel, other.mel)  # type: ignore[arg-type]


def _share_of_jpeg(tars: Path, *, cache: FrameCache, key: str) -> float:
    """Return the share of CPU of reading a clip of the cache that decoding its JPEGs takes, the least of five each."""
    with tarfile.open(tars / "0.tar") as tar:
        entries = [entry for entry in tar.getmembers() if entry.name.startswith("000000.") and "jpg" in entry.name]
        jpegs = [tar.extractfile(entry).read() for entry in entries]  # type: ignore[union-attr]

    def decode() -> None:
        for jpeg in jpegs:
            with Image.open(io.BytesIO(jpeg)) as image:
                image.load()

    alone, whole = (min(cpu(work) for _ in range(5)) for work in (decode, lambda: cache.load(key)))
    return alone / whole


def stand_in(pixels: np.ndarray | torch.Tensor) -> Media:
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
        floors = floor_rows(clips, rounds=options.rounds)
    notes += [
        f"{options.clips} clips of {SECONDS} s, {WIDTH}x{HEIGHT}, {FPS} fps, H.264 + AAC at {rate:.2f} Mbit/s; "
        f"{WORKERS} workers; frames of {LAYOUT.image_size} px",
        "CPU of a clip: the least of the rounds, one thread, a key frame each 5 s; ours has the sound and its mel, too",
        f"load of the machine when it ended: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; rounds alternate",
    ]
    return report("data", [*rows, *floors, collate_row(tokenizer=tokenizer)], notes=notes)


if __name__ == "__main__":
    sys.exit(main())
