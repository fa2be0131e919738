"""The arms of a measurement: what is taken away from a clip or exchanged in it, from one decoding of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from arcvideo.evaluation.answers import FULL, NO_SOUND
from arcvideo.measuring.questions import Material
from arcvideo.measuring.settings import NO_PICTURE, NO_STAMPS, OTHER_SOUND, SHIFTED_SOUND
from arcvideo.types import Clip

LOOK_BACK = 8
"""How many clips before this one are tried for another sound."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A decoded clip."""

    clip: Clip
    bare: Tensor | None
    """(F, 3, S, S) uint8: its frames without stamps; None unless they were asked for."""


def split_bare(clip: Clip, *, bare: bool) -> Seen:
    """Return a clip that was read with `bare` as stamped and bare frames."""
    if not bare or clip.frames is None:
        return Seen(clip=clip, bare=None)
    count = len(clip.frame_times)
    return Seen(clip=replace(clip, frames=clip.frames[:count]), bare=clip.frames[count:])


def arm_clip(seen: Seen, *, arm: str, other: Tensor | None) -> Clip | None:
    """Return the clip as an arm shows it; None when the arm would change nothing, or there is nothing left.

    Args:
        seen: the clip.
        arm: one of `measuring.settings.ARMS`.
        other: (n,) sound of another clip at 16 kHz; None when there is none.
    """
    clip = seen.clip
    if arm == FULL:
        return clip
    changed = f"{clip.key}:{arm}"
    if arm == NO_STAMPS:
        return None if seen.bare is None else replace(clip, key=changed, frames=seen.bare)
    if arm == NO_PICTURE:
        keeps = clip.frames is not None and clip.waveform is not None
        return replace(clip, key=changed, frames=None) if keeps else None
    if clip.waveform is None or (arm == NO_SOUND and clip.frames is None):
        return None
    if arm == NO_SOUND:
        return replace(clip, key=changed, waveform=None)
    if arm == SHIFTED_SOUND:
        return replace(clip, key=changed, waveform=torch.roll(clip.waveform, len(clip.waveform) // 3))
    assert arm == OTHER_SOUND, arm
    return None if other is None else replace(clip, key=changed, waveform=fitted(other, length=len(clip.waveform)))


def fitted(sound: Tensor, *, length: int) -> Tensor:
    """Return a sound cut to so many samples, or repeated up to them."""
    return sound.repeat(-(-length // len(sound)))[:length].clone()


class OtherSounds:
    """The sound of another clip for each clip: that of the one before it that has any, the last one's for the first.

    Which one it is depends on the order of the clips alone, not on ranks or on where a measurement was continued.
    """

    def __init__(self, materials: Sequence[Material], *, hear: Callable[[Material], Tensor | None]) -> None:
        """Take all clips of the measurement, in order, and what decodes the sound of one (None without sound)."""
        self.materials = materials
        self.hear = hear
        self._kept: OrderedDict[int, Tensor | None] = OrderedDict()
        self._place = {material.number: place for place, material in enumerate(materials)}

    def remember(self, material: Material, sound: Tensor | None) -> None:
        """Keep the sound of a clip that was just decoded: the next clip's is likely it."""
        self._kept[self._place[material.number]] = sound
        while len(self._kept) > 2:
            self._kept.popitem(last=False)

    def of(self, material: Material) -> Tensor | None:
        """Return the other sound for a clip; None when none of those before it has any."""
        place = self._place[material.number]
        for back in range(1, min(LOOK_BACK, len(self.materials) - 1) + 1):
            number = (place - back) % len(self.materials)
            if number not in self._kept:
                self.remember(self.materials[number], self.hear(self.materials[number]))
            if self._kept[number] is not None:
                return self._kept[number]
        return None
