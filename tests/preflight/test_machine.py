"""Devices that preflight knows by name."""

from __future__ import annotations

import pytest

from arcvideo.flops import PEAK_BF16, peak_flops
from arcvideo.preflight.machine import BANDWIDTH, GPU_GB, machine_of


@pytest.mark.parametrize("device", sorted(name.lower() for name in PEAK_BF16))
def test_every_device_whose_peak_is_known_is_known_with_its_memory_and_bandwidth(device: str) -> None:
    machine = machine_of({"device": device}, recipe=None)
    assert machine.peak == peak_flops(device) == PEAK_BF16[device.upper()]
    assert machine.bandwidth == BANDWIDTH[device]
    assert machine.gpu_gib * 2**30 == pytest.approx(GPU_GB[device] * 1e9)


def test_no_device_is_half_known() -> None:
    assert set(GPU_GB) == set(BANDWIDTH) == {name.lower() for name in PEAK_BF16}
