from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from arcvideo.decoding import pool as pool_module
from arcvideo.decoding.pool import TRIES, TRIES_FROM_OUTSIDE, MediaPool, NoDecoder
from arcvideo.layout import MediaLayout
from arcvideo.media.clip import read_clip
from arcvideo.media.errors import MediaError
from arcvideo.media.settings import MediaLimits
from tests.media.conftest import picture


def _process(pool: MediaPool) -> subprocess.Popen:
    return pool._workers[0]._process


@pytest.fixture(scope="module")
def pool():
    with MediaPool(limits=MediaLimits(deadline_seconds=30)) as pool:
        yield pool


def test_another_process_reads_the_very_same_clip(pool, short_video, layout):
    here = read_clip(short_video, name="a.mp4", layout=layout)
    there = pool.read_clip(short_video, name="a.mp4", layout=layout)
    assert there.key == here.key
    assert torch.equal(there.frames, here.frames)
    assert torch.equal(there.frame_times, here.frame_times)
    assert torch.equal(there.waveform, here.waveform)
    assert there.duration == here.duration


def test_clips_that_are_kept_are_not_written_over_by_later_ones(pool, short_video, layout):
    kept = [pool.read_clip(short_video, name="a.mp4", layout=layout, policy="random", seed=n) for n in range(4)]
    for number, clip in enumerate(kept):
        here = read_clip(short_video, name="a.mp4", layout=layout, policy="random", seed=number)
        assert torch.equal(clip.frames, here.frames)
        assert torch.equal(clip.waveform, here.waveform)


def test_a_pool_without_processes_reads_here(pool, short_video, layout):
    here = MediaPool(count=0).read_clip(short_video, name="a.mp4", layout=layout, window=(0.5, 1.5))
    there = pool.read_clip(short_video, name="a.mp4", layout=layout, window=(0.5, 1.5))
    assert here.key == there.key
    assert torch.equal(here.frames, there.frames)


def test_absent_halves_and_sidecars_travel(pool, short_video, layout):
    still = pool.read_clip(picture(), name="a.jpg", layout=layout)
    assert still.waveform is None
    dubbed = pool.read_clip(picture(), name="a.jpg", layout=layout, sidecar_audio=short_video)
    assert dubbed.waveform is not None


def test_errors_keep_their_reason_and_the_process_lives_on(pool, layout):
    pool.read_clip(picture(), name="a.jpg", layout=layout)
    before = _process(pool).pid
    with pytest.raises(MediaError) as caught:
        pool.read_clip(b"junk" * 1000, name="junk.mp4", layout=layout)
    assert caught.value.reason == "unreadable"
    assert "junk.mp4" in caught.value.detail
    assert _process(pool).pid == before


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the pool starts from here on, without pauses between the tries."""
    monkeypatch.setattr(pool_module, "_PAUSE", 0.001)
    started, seen = pool_module._start, []

    def start(limits):
        seen.append(limits)
        return started(limits)

    monkeypatch.setattr(pool_module, "_start", start)
    return seen


def _dying(sign: int, *, where: str) -> tuple[str, ...]:
    """Return the command of a decoder that a signal ends, when it reads a file or while it starts."""
    death = f"worker.{where} = lambda *_, **__: os.kill(os.getpid(), {sign})"
    return (sys.executable, "-c", f"import os; from arcvideo.decoding import worker; {death}; worker.main()")


def test_a_file_that_crashes_every_decoder_costs_one_error_and_the_next_is_read(layout, starts, monkeypatch):
    with MediaPool() as pool:
        with monkeypatch.context() as patched:
            patched.setattr(pool_module, "_COMMAND", _dying(signal.SIGSEGV, where="read_arrays"))
            with pytest.raises(MediaError) as caught:
                pool.read_clip(picture(), name="bad.jpg", layout=layout)
        assert caught.value.reason == "crashed"
        assert len(starts) == TRIES
        assert pool.read_clip(picture(), name="a.jpg", layout=layout).frames is not None


@pytest.mark.parametrize(("sign", "tries"), [(signal.SIGKILL, TRIES_FROM_OUTSIDE), (signal.SIGSEGV, 1)])
def test_a_decoder_that_dies_before_it_reads_a_file_costs_no_clip(layout, starts, monkeypatch, sign, tries):
    """Where memory is short for long, the kernel ends every decoder while it starts."""
    with MediaPool() as pool:
        with monkeypatch.context() as patched:
            patched.setattr(pool_module, "_COMMAND", _dying(sign, where="_volunteer"))
            with pytest.raises(NoDecoder, match=f"does not start .*{sign.name}"):
                pool.read_clip(picture(), name="a.jpg", layout=layout)
        assert len(starts) == tries
        assert pool.read_clip(picture(), name="a.jpg", layout=layout).frames is not None


def test_a_file_whose_process_is_killed_is_read_again(pool, layout):
    pool.read_clip(picture(), name="a.jpg", layout=layout)
    killed = _process(pool)
    os.kill(killed.pid, signal.SIGSTOP)  # so that it dies while the request is on its way
    killer = threading.Timer(0.3, os.kill, (killed.pid, signal.SIGKILL))
    killer.start()
    assert pool.read_clip(picture(), name="b.jpg", layout=layout).frames is not None
    assert killed.returncode == -signal.SIGKILL


def test_a_hanging_decoder_is_killed_at_the_deadline_and_the_file_read_once_more(layout):
    with MediaPool(limits=MediaLimits(deadline_seconds=4.0)) as pool:
        pool.read_clip(picture(), name="a.jpg", layout=layout)
        stuck = _process(pool)
        os.kill(stuck.pid, signal.SIGSTOP)
        assert pool.read_clip(picture(), name="slow.jpg", layout=layout).frames is not None
        assert stuck.returncode == -signal.SIGKILL


def test_memory_over_the_limit_is_too_large(layout):
    with (
        MediaPool(limits=MediaLimits(max_memory_bytes=900 << 20)) as pool,
        pytest.raises(MediaError) as caught,
    ):
        pool.read_clip(picture("png", size=(8000, 8000)), name="huge.png", layout=layout)
    assert caught.value.reason == "too_large"


def test_a_process_that_holds_on_to_memory_is_replaced_before_it_costs_a_file(layout):
    limit = 2 << 30
    with MediaPool(limits=MediaLimits(max_memory_bytes=limit)) as pool:
        pool.read_clip(picture(), name="a.jpg", layout=layout)
        fresh = _process(pool)
        size = int(Path(f"/proc/{fresh.pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        assert size < limit / 2
        pool.read_clip(picture(), name="b.jpg", layout=layout)
        assert _process(pool) is fresh
    with MediaPool(limits=MediaLimits(max_memory_bytes=round(1.5 * size))) as pool:  # as if it had leaked that much
        for number in range(3):
            assert pool.read_clip(picture(), name=f"{number}.jpg", layout=layout).frames is not None
            assert _process(pool) is None


def test_a_process_is_replaced_after_so_many_clips(layout, monkeypatch):
    few = "from arcvideo.decoding import worker; worker._MOST_CLIPS = 3; worker.main()"
    monkeypatch.setattr(pool_module, "_COMMAND", [sys.executable, "-c", few])
    with MediaPool() as pool:
        kept = []
        for number in range(6):
            assert pool.read_clip(picture(), name=f"{number}.jpg", layout=layout).frames is not None
            kept.append(_process(pool) is not None)
    assert kept == [True, True, False] * 2


def test_the_kernel_would_rather_end_the_decoder_than_the_training(pool, layout):
    pool.read_clip(picture(), name="a.jpg", layout=layout)
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert int(Path(f"/proc/{_process(pool).pid}/oom_score_adj").read_text()) == 1000 >= own


def test_closing_ends_the_process(layout):
    with MediaPool() as pool:
        pool.read_clip(picture(), name="a.jpg", layout=layout)
        process = _process(pool)
    assert process.returncode is not None


@pytest.mark.parametrize("module", ["worker", "pool"])  # who only examines files does without, too
def test_neither_the_process_nor_who_starts_it_imports_torch(module):
    code = f"import sys, arcvideo.decoding.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nonsense_limits_are_refused_by_name():
    with pytest.raises(ValueError, match="deadline_seconds"):
        MediaLimits(deadline_seconds=0)
    with pytest.raises(ValueError, match="count=-1"):
        MediaPool(count=-1)


NONSENSE = [
    (b"[" * 100_000, "died"),
    (b"[1]", "died"),
    (b"{}", "nonsense"),
    (b'{"reason": [], "detail": {}}', "{}"),
    (b'{"shapes": {"frames": [-1, 4]}, "key": "", "duration": 0}', "nonsense"),
    (b'{"shapes": {"frames": [1e400]}, "key": "", "duration": 0}', "nonsense"),
    (b'{"shapes": {"other": [1]}, "key": "", "duration": 0}', "nonsense"),
    (b'{"shapes": [], "key": "", "duration": 0}', "nonsense"),
]


@pytest.mark.parametrize(("head", "told"), NONSENSE, ids=[head[-30:].decode() for head, _ in NONSENSE])
def test_a_decoder_that_a_file_took_over_costs_that_file(
    head: bytes, told: str, layout: MediaLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = json.dumps({"ready": True})
    code = f"""
import os, struct
def say(text): os.write(0, struct.pack("<QQ", len(text), 0) + text)
say({ready.encode()!r})
os.read(0, 1 << 20)
say({head!r})
os.read(0, 1 << 20)
"""
    monkeypatch.setattr("arcvideo.decoding.pool._COMMAND", (sys.executable, "-c", code))
    with MediaPool() as pool, pytest.raises(MediaError, match=re.escape(told)) as caught:
        pool.read_clip(b"x" * 10, name="a.mp4", layout=layout)
    assert caught.value.reason == "crashed"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EAGAIN])
def test_a_process_that_the_system_does_not_start_costs_no_clip(short_video, layout, monkeypatch, number):
    """The system refuses for a while (too many processes), or for good (no permission)."""
    monkeypatch.setattr(pool_module, "_PAUSE", 0.001)
    started, refusals = pool_module._start, []

    def refusing(limits):
        if number == errno.EACCES or len(refusals) < 2:
            refusals.append(number)
            raise OSError(number, os.strerror(number), sys.executable)
        return started(limits)

    monkeypatch.setattr(pool_module, "_start", refusing)
    with MediaPool() as pool:
        if number == errno.EACCES:
            with pytest.raises(NoDecoder, match=r"does not start: .*Permission denied"):
                pool.read_clip(short_video, name="a.mp4", layout=layout)
        else:
            assert pool.read_clip(short_video, name="a.mp4", layout=layout).key
    assert len(refusals) == (1 if number == errno.EACCES else 2)
