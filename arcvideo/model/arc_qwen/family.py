"""ARC-Qwen-Video: two frames a group, no marks between groups, sound of two seconds on each group."""

from arcvideo.model.families.family import Family, Template

ARC_QWEN = Family(
    name="arc_qwen",
    parts="arcvideo.model.arc_qwen.parts",
    strings={
        "start": "<|im_start|>",
        "end": "<|im_end|>",
        "sep": "<|im_end|>",
        "eos": "<|endoftext|>",
        "pad": "<|endoftext|>",
        # Marks of our own layout, which say where rows and groups end until the ids go to the model: strings that
        # Qwen has and no video uses.
        "img_open": "<|vision_pad|>",
        "img_close": "<|vision_pad|>",
        "newline": "<|image_pad|>",
        "image": "<|video_pad|>",
        "vid_open": "<|vision_start|>",
        "vid_close": "<|vision_end|>",
    },
    template=Template(
        opening="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        behind_media="",
        separator="<|im_end|>\n<|im_start|>assistant\n",
        between="\n<|im_start|>user\n",
    ),
    merged=2,
    row_ends=False,
    edges=0,
    marks=0,
    frames_per_group=2,
    middle_sound=True,
    adapter_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    gated_vision=True,
)
