"""ARC's way with clips on HunyuanOCR's towers and decoder, which anybody can get."""

from dataclasses import replace

from arcvideo.model.arc_hunyuan.family import ARC_HUNYUAN
from arcvideo.model.families.family import Template


def _place(number: int) -> str:
    return f"<\uff5chy_place\u2581holder\u2581no\u2581{number}\uff5c>"


ARC_HUNYUAN_1B = replace(
    ARC_HUNYUAN,
    name="arc_hunyuan_1b",
    parts="arcvideo.model.arc_hunyuan_1b.parts",
    strings={
        "end": "<\uff5chy_Assistant\uff5c>",
        "start": "<\uff5chy_begin\u2581of\u2581sentence\uff5c>",
        "eos": _place(2),
        "pad": "<\uff5chy_\u2581pad\u2581\uff5c>",
        "img_open": _place(100),
        "img_close": _place(101),
        "image": _place(102),
        "newline": _place(103),
        "sep": "<\uff5chy_User\uff5c>",
        "vid_open": _place(104),
        "vid_close": _place(105),
    },
    # HunyuanOCR writes an empty system turn, which its placeholder 3 ends.
    template=Template(
        opening=f"<\uff5chy_begin\u2581of\u2581sentence\uff5c>{_place(3)}",
        behind_media="\n",
        separator="<\uff5chy_User\uff5c>",
        between="",
    ),
)
