from __future__ import annotations

import errno
import io
import multiprocessing
import os
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from arcvideo.decoding.cache import FrameCache, check_cached, draw
from arcvideo.layout import MediaLayout
from arcvideo.media.settings import FrameCacheSettings
from arcvideo.types import Media

LAYOUT = MediaLayout(image_size=64, mel_bins=80, audio_positions=400)


def media(number: int, *, frames: int = 3, sound: bool = True) -> Media:
    """Smooth frames, as JPEG is made for, with one hard edge."""
    ramp = torch.linspace(0, 255, 64).expand(frames, 3, 64, 64).clone()
    ramp[:, :, :, 32:] = (ramp[:, :, :, 32:] + 40 * number) % 256
    generator = torch.Generator().manual_seed(number)
    mel = torch.randn(1, 80, 800, generator=generator) if sound else None
    return Media(
        key=f"{number:064x}",
        frame_count=frames,
        seconds=frames,
        has_video=True,
        has_audio=sound,
        pixels=ramp.to(torch.uint8),
        mel=mel,
    )


def moving(frames: int) -> Media:
    """As `media`, every frame another one."""
    still = media(1, frames=frames, sound=False)
    assert still.pixels is not None
    pixels = torch.stack([frame.roll(5 * number, dims=-1) for number, frame in enumerate(still.pixels)])
    return replace(still, pixels=pixels)


def cache(folder: Path, **settings: float | str) -> FrameCache:
    return FrameCache(FrameCacheSettings(path=str(folder), **settings), layout=LAYOUT)  # type: ignore[arg-type]


def same(one: Media | None, other: Media | None) -> bool:
    assert one is not None
    assert other is not None
    tensors = ((one.pixels, other.pixels), (one.mel, other.mel))
    facts = [(clip.key, clip.frame_count, clip.seconds, clip.has_video, clip.has_audio) for clip in (one, other)]
    return facts[0] == facts[1] and all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b)) for a, b in tensors
    )


FORMS = pytest.mark.parametrize("form", ["jpeg", "raw"])


@FORMS
def test_first_and_later_readings_are_the_same_bits(tmp_path: Path, form: str) -> None:
    store = cache(tmp_path, form=form)
    key = store.key("clip")
    assert store.load(key) is None
    first = store.save(key, media(1))
    assert same(first, store.load(key))
    assert same(first, cache(tmp_path, form=form).load(key))


def test_frames_lose_little_and_sound_nothing(tmp_path: Path) -> None:
    store, whole = cache(tmp_path), media(2)
    kept = store.save(store.key("clip"), whole)
    assert kept.pixels is not None
    assert whole.pixels is not None
    assert (kept.pixels.float() - whole.pixels.float()).abs().mean() < 1.0
    assert torch.equal(kept.mel, whole.mel)  # type: ignore[arg-type]


@pytest.mark.parametrize("side", [1, 63, 200])  # less than a piece, and two pieces of which one is cut
def test_frames_are_those_of_a_plain_jpeg_reader(tmp_path: Path, side: int) -> None:
    pixels = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    store = cache(tmp_path)
    kept = store.save(store.key("clip"), replace(media(1), pixels=pixels)).pixels
    assert kept is not None
    (file,) = tmp_path.glob("??/*.clip")
    stored = load_file(file)
    jpeg = stored["frames"].numpy().tobytes()
    for frame, (start, end, _) in zip(kept, stored["places"].tolist(), strict=True):
        plain = np.asarray(Image.open(io.BytesIO(jpeg[start:end])))
        assert np.array_equal(frame.permute(1, 2, 0).numpy(), plain)


def test_raw_frames_are_the_very_pixels(tmp_path: Path) -> None:
    store, whole = cache(tmp_path, form="raw"), media(2)
    assert same(store.save(store.key("clip"), whole), replace(whole, key=store.key("clip")))
    assert same(store.load(store.key("clip")), replace(whole, key=store.key("clip")))


@FORMS
def test_frames_that_were_drawn_are_those_of_the_whole_clip(tmp_path: Path, form: str) -> None:
    store, candidates = cache(tmp_path, form=form), replace(moving(8), frame_count=2)
    whole = store.save(store.key("clip"), candidates).pixels
    assert whole is not None
    for slots in ([0, 4], [3, 7], [2, 5]):
        drawn = store.load(store.key("clip"), slots=slots)
        assert drawn is not None
        assert (drawn.frame_count, torch.equal(drawn.pixels, whole[slots])) == (2, True)  # type: ignore[arg-type]
        assert same(cache(tmp_path / "cold", form=form).save(store.key("clip"), candidates, slots=slots), drawn)


def test_a_draw_is_one_candidate_of_each_interval_and_its_seed_alone_decides() -> None:
    draws = [draw(seed=seed, intervals=50, candidates=4) for seed in range(40)]
    assert draws == [draw(seed=seed, intervals=50, candidates=4) for seed in range(40)]
    assert len({tuple(slots) for slots in draws}) == 40
    assert all([slot // 4 for slot in slots] == list(range(50)) for slots in draws)
    assert {slot % 4 for slots in draws for slot in slots} == {0, 1, 2, 3}


def test_candidates_of_a_still_picture_take_the_room_of_one(tmp_path: Path) -> None:
    still = replace(media(1, frames=1), frame_count=1)
    assert still.pixels is not None
    for name, pixels in (("one", still.pixels), ("four", still.pixels.expand(4, -1, -1, -1))):
        store = cache(tmp_path / name, form="raw")
        store.save(store.key("clip"), replace(still, pixels=pixels))
    one, four = (file.stat().st_size for name in ("one", "four") for file in (tmp_path / name).glob("??/*.clip"))
    assert four - one < still.pixels.nbytes / 2


def test_damage_in_a_frame_that_was_not_drawn_is_found_by_who_looks_at_all(tmp_path: Path) -> None:
    store = cache(tmp_path, form="raw")
    store.save(store.key("clip"), replace(moving(4), frame_count=1))
    (file,) = tmp_path.glob("??/*.clip")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert store.load(store.key("clip"), slots=[0]) is not None
    with pytest.raises(ValueError, match="is damaged"):
        check_cached(file)
    assert store.load(store.key("clip"), slots=[3]) is None


def test_absent_halves_stay_absent(tmp_path: Path) -> None:
    store = cache(tmp_path)
    silent = media(3, sound=False)
    assert same(store.save(store.key("silent"), silent), store.load(store.key("silent")))
    speech = Media(key="s", frame_count=2, seconds=2, has_video=False, has_audio=True, mel=torch.ones(1, 80, 800))
    assert same(store.save(store.key("speech"), speech), store.load(store.key("speech")))


def test_other_quality_or_mel_is_another_clip(tmp_path: Path) -> None:
    wider = MediaLayout(image_size=64, mel_bins=128, audio_positions=400)
    settings = FrameCacheSettings(path=str(tmp_path))
    stores = [cache(tmp_path), cache(tmp_path, quality=80), cache(tmp_path, form="raw")]
    stores.append(FrameCache(settings, layout=wider))
    assert len({store.key("clip") for store in stores} | {"clip"}) == 5


def test_damaged_file_is_replaced(tmp_path: Path) -> None:
    store = cache(tmp_path)
    key = store.key("clip")
    first = store.save(key, media(1))
    (file,) = tmp_path.glob("??/*.clip")
    file.write_bytes(file.read_bytes()[:100])
    assert store.load(key) is None
    assert not file.exists()
    assert same(store.save(key, media(1)), first)


@FORMS
@pytest.mark.parametrize("place", [0.0005, 0.2, 0.5, 0.8, 0.999])
def test_a_single_flipped_bit_is_noticed(tmp_path: Path, place: float, form: str) -> None:
    store = cache(tmp_path, form=form)
    key = store.key("clip")
    first = store.save(key, media(1))
    (file,) = tmp_path.glob("??/*.clip")
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1
    file.write_bytes(content)
    assert store.load(key) is None
    assert same(store.save(key, media(1)), first)


def test_file_of_an_earlier_version_is_decoded_anew(tmp_path: Path) -> None:
    store = cache(tmp_path)
    key = store.key("clip")
    store.save(key, media(1))
    (file,) = tmp_path.glob("??/*.clip")
    save_file(load_file(file), file, metadata={"frame_count": "3", "seconds": "3"})
    assert store.load(key) is None


def test_folder_stays_within_its_limit_and_keeps_what_was_read_last(tmp_path: Path) -> None:
    free = cache(tmp_path / "free")
    free.save(free.key("one"), media(1))
    size = sum(file.stat().st_size for file in (tmp_path / "free").glob("??/*.clip"))
    store = cache(tmp_path / "small", max_gib=4.5 * size / 2**30)
    keys = [store.key(str(number)) for number in range(12)]
    for number, key in enumerate(keys):
        store.save(key, media(number))
        assert store.load(keys[0]) is not None  # in use all the time
        assert sum(file.stat().st_size for file in (tmp_path / "small").glob("??/*.clip")) <= 4.5 * size * 1.1
    assert store.load(keys[-1]) is not None
    assert store.load(keys[1]) is None


def _write(folder: str, first: int) -> None:
    store = cache(Path(folder), max_gib=1e-3)
    for number in range(20):
        store.save(store.key(str((first + number) % 20)), media((first + number) % 20))


def test_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    writers = [
        multiprocessing.get_context("spawn").Process(target=_write, args=(str(tmp_path), 7 * number))
        for number in range(3)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    store, fresh = cache(tmp_path), cache(tmp_path / "fresh")
    for number in range(20):
        found = store.load(store.key(str(number)))
        if found is not None:  # the limit may have removed it
            assert same(found, fresh.save(store.key(str(number)), media(number)))
    assert not list(tmp_path.glob("??/.*"))


def test_folder_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = cache(tmp_path / "file")
    with pytest.raises(ValueError, match=r"data\.frame_cache\.path=.*cannot be written"):
        store.save(store.key("clip"), media(1))


@FORMS
def test_a_file_under_the_name_of_another_clip_is_not_taken_for_it(tmp_path: Path, form: str) -> None:
    store = cache(tmp_path, form=form)
    keys = [store.key(name) for name in ("one", "two")]
    for number, key in enumerate(keys):
        store.save(key, media(number))
    one, two = (tmp_path / key[:2] / f"{key}.clip" for key in keys)
    one.write_bytes(two.read_bytes())
    with pytest.raises(ValueError, match="another name"):
        check_cached(one)
    assert store.load(keys[0]) is None
    assert store.load(keys[1]) is not None


HEADERS = [
    b"[" * 100_000,
    b'{"__metadata__": {}, "mel": {"dtype": "F32", "shape": [1], "data_offsets": []}}',
    b'{"__metadata__": {}, "mel": {"dtype": "F32", "shape": [1], "data_offsets": [1e400, 1]}}',
    b'{"__metadata__": {}, "mel": {"dtype": "F32", "shape": [1], "data_offsets": [1' + b"0" * 30 + b", 1]}}",
    b'{"__metadata__": {}, "mel": {"dtype": "F32", "shape": [1], "data_offsets": [-1000, 1]}}',
    b'{"__metadata__": {}, "mel": {"dtype": "F32", "shape": [-1, 4], "data_offsets": [0, 1]}}',
    b'{"__metadata__": {}, "mel": {"dtype": "F32", "shape": [1099511627776], "data_offsets": [0, 1]}}',
    b'{"__metadata__": {}, "mel": 7}',
    b"null",
]


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: header[-40:].decode())
def test_whatever_a_header_says_it_is_damage(tmp_path: Path, header: bytes) -> None:
    store = cache(tmp_path)
    key = store.key("clip")
    store.save(key, media(1))
    (file,) = tmp_path.glob("??/*.clip")
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(100))
    with pytest.raises(ValueError, match="is damaged"):
        check_cached(file)
    assert store.load(key) is None
    assert not file.exists()


def test_a_folder_of_somebody_else_is_read_and_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = cache(tmp_path)
    keys = [store.key(name) for name in ("whole", "damaged")]
    first = [store.save(key, media(1)) for key in keys]
    damaged = tmp_path / keys[1][:2] / f"{keys[1]}.clip"
    damaged.write_bytes(damaged.read_bytes()[:-1])

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("arcvideo.decoding.cache.os.utime", refused)
    monkeypatch.setattr(Path, "unlink", refused)
    assert same(store.load(keys[0]), first[0])
    assert store.load(keys[1]) is None


def test_a_file_that_cannot_be_opened_now_stays(tmp_path: Path) -> None:
    store = cache(tmp_path)
    key = store.key("clip")
    first = store.save(key, media(1))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        assert store.load(key) is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert same(store.load(key), first)


def test_a_clip_larger_than_the_limit_is_not_stored_and_others_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = cache(tmp_path, form="raw", max_gib=1 / 2**12)  # 256 KiB
    small, large = media(1, sound=False), moving(200)
    store.save(store.key("small"), small)
    for _ in range(2):
        saved = store.save(store.key("large"), large)
        assert saved.pixels is not None
        assert len(saved.pixels) == 200
    assert store.load(store.key("large")) is None
    assert store.load(store.key("small")) is not None
    (line,) = capsys.readouterr().err.splitlines()
    assert "more than data.frame_cache.max_gib=0.000244141: such clips are not stored" in line


@pytest.mark.parametrize("name", [".left.partial", ".tmpDjI2ca"])  # ours, and what safetensors writes first
def test_what_killed_writers_left_is_removed_and_a_file_under_way_is_not(tmp_path: Path, name: str) -> None:
    store = cache(tmp_path, max_gib=1e-3)
    (tmp_path / "ab").mkdir()
    left, under_way = tmp_path / "ab" / name, tmp_path / "ab" / ".new.partial"
    for path in (left, under_way):
        path.write_bytes(b"half")
    os.utime(left, (1, 1))
    store.save(store.key("clip"), media(1))
    assert not left.exists()
    assert under_way.exists()


def test_a_folder_that_took_clips_and_does_no_longer_ends_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mount"
    store = cache(folder)
    first = store.save(store.key("clip"), media(1))
    shutil.rmtree(folder)
    folder.write_text("gone")
    again = store.save(store.key("clip"), media(1))
    assert same(again, first)
    assert store.load(store.key("clip")) is None
    assert "cannot be written any more, what is missing is decoded every time" in capsys.readouterr().err


def test_a_cache_that_somebody_else_filled_is_read_and_ends_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root may write everywhere, so a file stands where this clip's folder of another user would be."""
    theirs = cache(tmp_path)
    first = theirs.save(theirs.key("one"), media(1))
    store = cache(tmp_path)
    (tmp_path / store.key("two")[:2]).write_text("")
    again = [store.save(store.key("two"), media(2)) for _ in range(2)]
    assert same(again[0], again[1])
    found = store.load(store.key("one"))
    assert found is not None
    assert same(found, first)
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be written, what is missing is decoded every time" in line


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EDQUOT])
def test_a_broken_or_full_disk_ends_no_run_even_before_it_took_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(*words: object, **named: object) -> None:
        raise SafetensorError(f"Error while serializing: I/O error: refused (os error {number})")

    monkeypatch.setattr("arcvideo.decoding.cache.save_file", refused)
    store = cache(tmp_path)
    assert [store.save(store.key("clip"), media(1)).pixels is not None for _ in range(2)] == [True, True]
    (line,) = capsys.readouterr().err.splitlines()
    assert f"what is missing is decoded every time: {tmp_path}: {os.strerror(number)}; " in line
