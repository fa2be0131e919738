"""Where a recipe would run."""

from __future__ import annotations

import os
from dataclasses import dataclass

from arcvideo.composing.recipe import MachineSettings
from arcvideo.flops import peak_flops
from arcvideo.structured import nearest

GIB = float(1 << 30)
GPU_GB = {
    "h20": 96.0, "a100": 80.0, "a800": 80.0, "l40s": 48.0, "h100": 80.0, "h800": 80.0, "h200": 141.0, "b200": 180.0,
    "l4": 24.0, "a10": 24.0, "a40": 48.0, "a6000": 48.0, "rtx3090": 24.0, "rtx4090": 24.0, "rtx5090": 32.0,
}  # fmt: skip
"""Memory of one device (vendor data sheets)."""
BANDWIDTH = {
    "h20": 4.0e12, "a100": 2.04e12, "a800": 2.04e12, "l40s": 0.864e12, "h100": 3.35e12, "h800": 3.35e12,
    "h200": 4.8e12, "b200": 8.0e12, "l4": 0.3e12, "a10": 0.6e12, "a40": 0.696e12, "a6000": 0.768e12,
    "rtx3090": 0.936e12, "rtx4090": 1.008e12, "rtx5090": 1.792e12,
}  # fmt: skip
"""Bytes a second between a device and its memory (vendor data sheets); decoding is bound by it."""
CPU_PEAK, CPU_BANDWIDTH = 5e10, 1e10
"""Assumed of one CPU process; guesses that only orders of magnitude should be read from."""
ROOM = 0.92
"""Share of a device's memory that may be planned for: the rest is CUDA's context, buckets and fragmentation."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Devices of one kind and what lies around them."""

    device: str = "h200"
    """A name of `GPU_GB`, cpu, or any other with numbers."""
    gpus: int = 8
    """Processes, one a device."""
    utilization: float = 0.4
    """Share of the device's peak that training reaches, assumed."""
    gpu_gib: float = 0.0
    """Memory of a device."""
    host_gib: float = float("inf")
    """Memory around the devices."""
    peak_tflops: float = 0.0
    """FLOPs a second of one device, in units of 1e12; 0 looks its name up."""
    bandwidth_tb: float = 0.0
    """Bytes a second between a device and its memory, in units of 1e12; 0 looks its name up."""
    price: float = 0.0
    """Of one device and hour, in whatever currency."""

    @property
    def peak(self) -> float:
        """FLOPs a second of one device."""
        return self.peak_tflops * 1e12 or peak_flops(self.device) or CPU_PEAK

    @property
    def bandwidth(self) -> float:
        """Bytes a second of one device."""
        return self.bandwidth_tb * 1e12 or BANDWIDTH.get(self.device, CPU_BANDWIDTH)

    def cost(self, seconds: float) -> float:
        """Price of all devices for so long."""
        return self.price * self.gpus * seconds / 3600

    @property
    def room(self) -> float:
        """Bytes of a device that may be planned for."""
        return self.gpu_gib * GIB * ROOM


def machine_of(words: dict[str, str], *, recipe: MachineSettings | None) -> Machine:
    """Return the machine that the command line names; what it leaves out is the recipe's, or eight H200.

    Raises:
        ValueError: not a number that can be, or no such device.
    """
    defaults = recipe or MachineSettings()
    device = words.get("device", defaults.device).lower()
    for key in ("gpus", "utilization", "gpu_memory", "peak_tflops", "bandwidth_tb", "price", "host_memory"):
        if key in words and not 0 < _number(words, key, 0.0) < float("inf"):
            raise ValueError(f"{key}={words[key]} must be a number above 0")
    if _number(words, "gpus", 1) % 1:
        raise ValueError(f"gpus={words['gpus']} must be a whole number")
    numbers = ("peak_tflops", "bandwidth_tb", "gpu_memory")
    if device not in (*GPU_GB, "cpu") and not all(key in words for key in numbers):
        raise ValueError(
            f"device={device}: not a device that is known by name{nearest(device, list(GPU_GB))}; "
            f"choose from {', '.join(GPU_GB)}, cpu, or give its numbers: {'=N '.join(numbers)}=N"
        )
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    processes = defaults.gpus if device == defaults.device else 8
    machine = Machine(
        device=device,
        gpus=int(_number(words, "gpus", 1 if device == "cpu" else processes)),
        utilization=_number(words, "utilization", 0.4),
        gpu_gib=_number(words, "gpu_memory", GPU_GB[device] * 1e9 / GIB if device in GPU_GB else here),
        peak_tflops=_number(words, "peak_tflops", 0.0),
        bandwidth_tb=_number(words, "bandwidth_tb", 0.0),
        price=_number(words, "price", 0.0),
        host_gib=_number(words, "host_memory", here if device == "cpu" else defaults.host_gib or float("inf")),
    )
    if machine.utilization > 1:
        raise ValueError(f"utilization={machine.utilization:g} must be a share, at most 1")
    return machine


def _number(words: dict[str, str], key: str, default: float) -> float:
    try:
        return float(words.get(key, default))
    except ValueError:
        raise ValueError(f"{key}={words[key]}: expected a number") from None
