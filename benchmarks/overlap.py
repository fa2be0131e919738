"""Decontamination: precision and recall of fingerprints on clips that were encoded anew, packed anew, trimmed,
shrunk, or given another sound or picture (`python -m benchmarks.overlap [--clips N] [--media FOLDER]`).

Half of the clips have copies in the training set, changed in one way each; the other half are strangers on both sides.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from arcvideo.fingerprints.descriptors import Prints, prints_of
from arcvideo.fingerprints.match import overlaps
from arcvideo.synthetic.encode import encode
from arcvideo.synthetic.script import draw_script
from benchmarks.table import Row, report


def film(
    pictures: Sequence[np.ndarray],
    *,
    rate: float,
    sound: np.ndarray | None,
    codec: str = "libx264",
    crf: int = 23,
    bit_rate: int = 0,
    kind: str = "mp4",
) -> bytes:
    """Return a film of RGB pictures and mono sound at 16 kHz."""
    target = io.BytesIO()
    with av.open(target, "w", format="matroska" if kind == "mkv" else kind) as container:
        video = container.add_stream(codec, rate=round(rate))
        video.height, video.width = (side - side % 2 for side in pictures[0].shape[:2])
        video.pix_fmt = "yuv420p"
        if codec == "libx264":
            video.options = {"preset": "ultrafast", "crf": str(crf)}
        if bit_rate:
            video.bit_rate = bit_rate
        audio = container.add_stream("aac", rate=16_000, layout="mono") if sound is not None else None
        for picture in pictures:
            shown = np.ascontiguousarray(picture[: video.height, : video.width])
            container.mux(video.encode(av.VideoFrame.from_ndarray(shown)))
        container.mux(video.encode(None))
        if audio is not None and sound is not None:
            heard = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[None]), format="fltp", layout="mono")
            heard.sample_rate = 16_000
            container.mux(audio.encode(heard))
            container.mux(audio.encode(None))
    return target.getvalue()


def unpacked(data: bytes) -> tuple[list[np.ndarray], float, np.ndarray | None]:
    """Return the pictures, their rate and the sound of a film."""
    with av.open(io.BytesIO(data)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        rate = float(container.streams.video[0].average_rate or 1)
    with av.open(io.BytesIO(data)) as container:
        if not container.streams.audio:
            return pictures, rate, None
        turned = av.AudioResampler(format="fltp", layout="mono", rate=16_000)
        parts = [part.to_ndarray()[0] for frame in container.decode(audio=0) for part in turned.resample(frame)]
    return pictures, rate, np.concatenate(parts) if parts else None


def packed_anew(data: bytes) -> bytes:
    """Return the same streams in another container."""
    target = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(target, "w", format="matroska") as container:
        streams = {
            one.index: container.add_stream_from_template(one)
            for one in (*source.streams.video[:1], *source.streams.audio[:1])
        }
        for packet in source.demux(*[source.streams[index] for index in streams]):
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                container.mux(packet)
    return target.getvalue()


def encoded_anew(data: bytes) -> bytes:
    """Return a copy of another codec at a small rate."""
    pictures, rate, sound = unpacked(data)
    return film(pictures, rate=rate, sound=sound, codec="mpeg4", bit_rate=220_000, kind="mp4")


def shrunk(data: bytes) -> bytes:
    """Return a copy of two thirds of the size, hard compressed and quieter."""
    pictures, rate, sound = unpacked(data)
    size = tuple(max(16, round(side * 2 / 3)) for side in pictures[0].shape[1::-1])
    small = [np.asarray(Image.fromarray(picture).resize(size)) for picture in pictures]
    return film(small, rate=rate, sound=None if sound is None else sound * 0.5, crf=32)


def trimmed(data: bytes) -> bytes:
    """Return a copy without its first 1.3 seconds and its last."""
    pictures, rate, sound = unpacked(data)
    first, last = round(1.3 * rate), len(pictures) - round(rate)
    begin, end = round(first / rate * 16_000), round(last / rate * 16_000)
    return film(pictures[first:last], rate=rate, sound=None if sound is None else sound[begin:end])


def other_sound(data: bytes) -> bytes:
    """Return the picture with a melody of our own."""
    pictures, rate, _ = unpacked(data)
    times = np.arange(round(len(pictures) / rate * 16_000)) / 16_000
    notes = 2 ** (np.random.default_rng(len(data)).integers(-12, 12, size=len(times) // 4000 + 1) / 12)
    tune = np.sin(2 * np.pi * 440 * np.cumsum(np.repeat(notes, 4000)[: len(times)]) / 16_000) * 0.3
    return film(pictures, rate=rate, sound=tune.astype(np.float32))


def other_picture(data: bytes) -> bytes:
    """Return the sound under another picture."""
    pictures, rate, sound = unpacked(data)
    rng = np.random.default_rng(len(data) + 1)
    small = rng.integers(0, 255, size=(len(pictures) // 8 + 1, 6, 4, 3)).astype(np.uint8)
    size = pictures[0].shape[1::-1]
    drawn = [np.asarray(Image.fromarray(small[place // 8]).resize(size)) for place in range(len(pictures))]
    return film(drawn, rate=rate, sound=sound)


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "packed_anew": packed_anew,
    "encoded_anew": encoded_anew,
    "shrunk": shrunk,
    "trimmed": trimmed,
    "other_sound": other_sound,
    "other_picture": other_picture,
}
"""What is done to a copy."""


def clips(count: int, *, seed: int = 0, split: str = "test") -> list[bytes]:
    """Return TinyShorts clips with picture and sound."""
    return [encode(draw_script(split=split, index=index, seed=seed, kind="full"))[1] for index in range(count)]


def measure(films: Sequence[bytes]) -> dict[str, Any]:
    """Return precision and recall: the first half of the films has a copy of each kind in the training set, which also
    holds the last quarter; the third quarter is looked for in vain."""
    copied, strangers, training = (
        films[: len(films) // 2],
        films[len(films) // 2 : -len(films) // 4],
        films[-len(films) // 4 :],
    )
    wanted = [printed(one) for one in (*copied, *strangers)]
    begun = time.perf_counter()
    held = [(place, name, printed(change(one))) for place, one in enumerate(copied) for name, change in CHANGES.items()]
    seconds = time.perf_counter() - begun
    held += [(-1, "stranger", printed(one)) for one in training]
    found = overlaps(wanted, [one for _, _, one in held])
    right = [one for one in found if held[one.second][0] == one.first]
    recall = {name: sum(held[one.second][1] == name for one in right) / max(1, len(copied)) for name in CHANGES}
    kinds = {name: sorted({one.kind for one in right if held[one.second][1] == name}) for name in CHANGES}
    return {
        "clips": len(films),
        "pairs": len(wanted) * len(held),
        "said": len(found),
        "precision": len(right) / max(1, len(found)),
        "recall": recall,
        "kinds": kinds,
        "false": [(one.first, held[one.second][1], one.kind) for one in found if one not in right],
        "seconds_of_copies": round(seconds, 1),
    }


def printed(data: bytes) -> Prints:
    """Return the fingerprints of a film."""
    return prints_of(data, name="clip")


def rows_of(found: dict[str, Any], *, what: str) -> list[Row]:
    """Return precision and recall as rows of the record."""
    copies = found["clips"] // 2 * len(CHANGES)
    shares = {
        f"share of {copies} changed copies found": (sum(found["recall"].values()) / len(CHANGES), 0.95),
        f"share of {found['said']} pairs found that are copies": (found["precision"], 0.9),
    }
    return [
        Row(metric=f"{what}: {metric}", ours=share, baseline=None, ratio=share, target=least)
        for metric, (share, least) in shares.items()
    ]


def notes_of(found: dict[str, Any], *, what: str) -> list[str]:
    """Return what was done, and what was taken for a copy that is none."""
    wrong = sorted({kind for _, _, kind in found["false"]})
    taken = f"taken for copies by: {', '.join(wrong)}" if wrong else "nothing else was taken for a copy"
    return [f"{what}: {found['clips']} clips, {found['pairs']} pairs compared; {', '.join(CHANGES)}; {taken}"]


def main() -> int:
    """Measure, print the table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--media", type=Path, help="folder of films to measure as well")
    options = parser.parse_args()
    sets = {"TinyShorts": clips(options.clips, seed=options.seed)}
    if options.media is not None:
        sets["films"] = [path.read_bytes() for path in sorted(options.media.glob("*.mp4"))]
    rows: list[Row] = []
    notes: list[str] = []
    for what, films in sets.items():
        found = measure(films)
        rows += rows_of(found, what=what)
        notes += notes_of(found, what=what)
    return report("overlap", rows, notes=notes)


if __name__ == "__main__":
    sys.exit(main())
