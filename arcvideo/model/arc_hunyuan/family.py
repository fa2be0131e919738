"""ARC-Hunyuan-Video: every frame between marks of its own, rows with ends, sound of a second on each frame."""

from arcvideo.model.families.family import Family, Template

ARC_HUNYUAN = Family(
    name="arc_hunyuan",
    parts="arcvideo.model.arc_hunyuan.parts",
    strings={
        "end": "<|endoftext|>",
        "start": "<|startoftext|>",
        "eos": "<|eos|>",
        "pad": "<|pad|>",
        "img_open": "<img>",
        "img_close": "</img>",
        "newline": "<newline>",
        "image": "<IMG_CONTEXT>",
        "sep": "<sep>",
        "vid_open": "<vid>",
        "vid_close": "</vid>",
    },
    template=Template(opening="<|startoftext|>", behind_media="\n", separator="<sep>", between=""),
    merged=2,
    adapter_targets=("qkv_proj", "o_proj", "gate_and_up_proj", "down_proj"),
)
