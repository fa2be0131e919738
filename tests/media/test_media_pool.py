from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from arcvideo.media.clip import read_clip
from arcvideo.media.errors import MediaError
from arcvideo.media.pool import MediaPool
from arcvideo.media.settings import MediaLimits
from tests.media.conftest import picture


def _process(pool: MediaPool) -> subprocess.Popen:
    return pool._workers[0]._process


def _killed_when_asked(pool: MediaPool, pid: int) -> None:
    """Kill the process once a file is on its way to it."""
    while not pool._workers[0]._lock.locked():
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(pid, signal.SIGSEGV)
    time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)


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


def test_a_crash_costs_one_error_and_the_next_file_is_read(pool, layout):
    pool.read_clip(picture(), name="a.jpg", layout=layout)
    os.kill(_process(pool).pid, signal.SIGSTOP)  # so that it dies while the request is on its way
    threading.Thread(target=_killed_when_asked, args=(pool, _process(pool).pid)).start()
    with pytest.raises(MediaError) as caught:
        pool.read_clip(picture(), name="bad.jpg", layout=layout)
    assert caught.value.reason == "crashed"
    assert "SIG" in caught.value.detail
    assert pool.read_clip(picture(), name="a.jpg", layout=layout).frames is not None


def test_a_hanging_decoder_is_killed_at_the_deadline(layout):
    with MediaPool(limits=MediaLimits(deadline_seconds=4.0)) as pool:
        pool.read_clip(picture(), name="a.jpg", layout=layout)
        stuck = _process(pool)
        os.kill(stuck.pid, signal.SIGSTOP)
        with pytest.raises(MediaError) as caught:
            pool.read_clip(picture(), name="slow.jpg", layout=layout)
        assert caught.value.reason == "timeout"
        assert stuck.returncode == -signal.SIGKILL
        assert pool.read_clip(picture(), name="a.jpg", layout=layout).frames is not None


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


def test_the_kernel_would_rather_end_the_decoder_than_the_training(pool, layout):
    pool.read_clip(picture(), name="a.jpg", layout=layout)
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert int(Path(f"/proc/{_process(pool).pid}/oom_score_adj").read_text()) == 1000 >= own


def test_closing_ends_the_process(layout):
    with MediaPool() as pool:
        pool.read_clip(picture(), name="a.jpg", layout=layout)
        process = _process(pool)
    assert process.returncode is not None


def test_the_process_imports_no_torch():
    code = "import sys, arcvideo.media.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nonsense_limits_are_refused_by_name():
    with pytest.raises(ValueError, match="deadline_seconds"):
        MediaLimits(deadline_seconds=0)
    with pytest.raises(ValueError, match="count=0"):
        MediaPool(count=0)
