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


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 4090", "NVIDIA L4", "NVIDIA A10", "NVIDIA RTX A6000"])
def test_workstation_devices_are_known_by_the_names_they_give_themselves(name: str) -> None:
    assert peak_flops(name) in (PEAK_BF16["RTX4090"], PEAK_BF16["L4"], PEAK_BF16["A10"], PEAK_BF16["A6000"])
    assert peak_flops("NVIDIA A10G") is None


@pytest.mark.parametrize(
    "word", ["price=-1", "price=nan", "peak_tflops=-4", "gpu_memory=0", "bandwidth_tb=inf", "gpus=0", "host_memory=-8"]
)
def test_a_number_that_no_machine_has_is_refused(word: str) -> None:
    key, _, value = word.partition("=")
    with pytest.raises(ValueError, match=f"{word} must be a number above 0"):
        machine_of({key: value}, recipe=None)


def test_half_a_device_and_more_than_its_peak_are_refused() -> None:
    with pytest.raises(ValueError, match=r"gpus=2.5 must be a whole number"):
        machine_of({"gpus": "2.5"}, recipe=None)
    with pytest.raises(ValueError, match=r"utilization=1.5 must be a share"):
        machine_of({"utilization": "1.5"}, recipe=None)
