"""The steps of `make gpu-day`: `python -m benchmarks.gpu_steps STEP SIZE` prints one line of JSON.

A step returns figures and, where something was predicted of them, predictions under the same names. What can fail on
one kind of device alone (a kernel that it lacks) is a figure with the reason as its value: the rest is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from arcvideo.composing.compose import stage_config
from arcvideo.flops import peak_flops
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.settings import ModelSettings
from arcvideo.model.special import SpecialIds
from arcvideo.objectives.next_token import NextToken
from arcvideo.objectives.scores import forward_of, loss_of
from arcvideo.preflight.trace import Row, trace_row
from arcvideo.tracking.cost import useful_flops
from arcvideo.types import Batch
from benchmarks.slice import TRAIN, batch_of, model_of, slice_of

GIB = 1 << 30
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large everything is."""

    model: str
    """Page of conf/model."""
    gemm: int
    """Side of the matrices."""
    tokens: int
    """Of a long row of attention."""
    frames: int
    text: int
    """Tokens behind the frames."""
    layers: int
    """Of the slice that repeats and resumes."""
    prompt: int
    completion: int
    group: int
    prompts: tuple[int, ...]
    """Prompts decoded together, in turn."""
    turns: int
    """Tokens of a measured rollout."""
    dtype: torch.dtype
    tests: tuple[str, ...]


SIZES = {
    "full": Size(
        model="arc_hunyuan_7b", gemm=8192, tokens=20_480, frames=150, text=2_048, layers=8, prompt=17_300,
        completion=300, group=8, prompts=(1, 8), turns=192, dtype=torch.bfloat16,
        tests=("-m", "gpu or not slow", "tests/model/test_backends.py", "tests/rollout/test_cuda.py",
               "tests/sampling", "tests/runner/test_gpu.py"),
    ),
    "toy": Size(
        model="tiny", gemm=128, tokens=256, frames=2, text=40, layers=2, prompt=60, completion=6, group=4,
        prompts=(1, 2), turns=12, dtype=torch.float32, tests=("tests/sampling/test_draw.py",),
    ),
}  # fmt: skip


def settings_of(size: Size) -> ModelSettings:
    """Return the model's settings with a vocabulary that holds the special ids."""
    model = stage_config(["stage=sft", f"model={size.model}"]).model
    least = max(vars(SpecialIds()).values()) + 1
    return replace(model, text=replace(model.text, vocab_size=max(model.text.vocab_size, least)))


def seconds(run: Callable[[], object], *, rounds: int = 3) -> float:
    """Return the median time of a call, after one to warm up."""
    found = []
    for number in range(rounds + 1):
        wait()
        began = time.perf_counter()
        run()
        wait()
        if number:
            found.append(time.perf_counter() - began)
    return sorted(found)[rounds // 2]


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def peak_gib(run: Callable[[], object]) -> float:
    """Return the most memory above what is held before, in GiB; 0 on a CPU, which does not count it."""
    if not CUDA:
        run()
        return 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    wait()
    return (torch.cuda.max_memory_allocated() - before) / GIB


def tried(run: Callable[[], Any]) -> Any:
    """Return what a call gives, or why it cannot."""
    try:
        return run()
    except Exception as error:  # whatever a kernel says about this device
        if CUDA:
            torch.cuda.empty_cache()
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"


def peak() -> float:
    """FLOPs a second of the device; of a CPU a guess, so that shares are numbers at toy size too."""
    return (peak_flops(torch.cuda.get_device_name()) if CUDA else None) or 5e10


# The steps.


def environment(size: Size) -> dict[str, Any]:
    """What there is."""
    figures: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "gpus": torch.cuda.device_count(),
    }
    if CUDA:
        about = torch.cuda.get_device_properties(0)
        figures |= {
            "device": about.name, "gib": about.total_memory / GIB, "capability": f"{about.major}.{about.minor}",
            "cudnn": torch.backends.cudnn.version(), "bf16": torch.cuda.is_bf16_supported(),
            "peak_tflops": peak() / 1e12,
            "driver": tried(lambda: subprocess.check_output(
                ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], text=True).split()[0]),
        }  # fmt: skip
    return {"figures": figures}


def tests(size: Size) -> dict[str, Any]:
    """The tests that need a GPU, and those of kernels on whatever device is there."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *size.tests]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    sys.stderr.write(done.stdout[-20_000:] + done.stderr[-5_000:])
    words = done.stdout.replace(",", "").split()
    counts = {kind: int(words[words.index(kind) - 1]) for kind in ("passed", "failed", "skipped") if kind in words}
    dots = sum(line.count(".") for line in done.stdout.splitlines() if line.rstrip().endswith("%]"))
    return {"figures": {"failed": int(done.returncode != 0), "passed": dots} | counts}


def ceilings(size: Size) -> dict[str, Any]:
    """What the device can do at all: products, copies, attention by kernel."""
    n, dtype = size.gemm, size.dtype
    a, b = (torch.randn(n, n, device=DEVICE, dtype=dtype) for _ in range(2))
    figures: dict[str, Any] = {"gemm_tflops": 2 * n**3 / seconds(lambda: a @ b) / 1e12}
    big = torch.empty(64 * n * n, device=DEVICE, dtype=torch.uint8)
    figures["copy_gb_s"] = 2 * big.numel() / seconds(big.clone) / 1e9
    del big
    text = settings_of(size).text
    heads, groups = text.num_attention_heads, text.num_key_value_heads
    like: dict[str, Any] = {"device": DEVICE, "dtype": dtype, "requires_grad": True}
    q, k, v = (torch.randn(1, n, size.tokens, text.attention_head_dim, **like) for n in (heads, groups, groups))
    work = 2 * size.tokens**2 * text.num_attention_heads * text.attention_head_dim  # forward, half a square
    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"):
        kernel = getattr(SDPBackend, name)

        def forward(kernel: Any = kernel) -> Tensor:
            with sdpa_kernel([kernel]) if CUDA else sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
                return nnf.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        def both(forward: Callable[[], Tensor] = forward) -> None:
            forward().sum().backward()

        short = name.partition("_")[0].lower()
        figures[f"{short}_forward_tflops"] = tried(lambda f=forward: work / seconds(f) / 1e12)  # type: ignore[misc]
        figures[f"{short}_both_tflops"] = tried(lambda f=both: 3.5 * work / seconds(f) / 1e12)  # type: ignore[misc]
    return {"figures": figures, "predicted": {"gemm_tflops": peak() / 1e12}}


def backends(size: Size) -> dict[str, Any]:
    """What each kind of row costs: the first call with new lengths, a later one, and memory."""
    from arcvideo.model.attention import attend
    from arcvideo.model.plans import packed_plan
    from arcvideo.types import Segments

    text, n, figures = settings_of(size).text, size.tokens, {}
    rows = {
        "one": ([n], [-1]),
        "documents": ([n // 2, n // 3, n - n // 2 - n // 3], [-1, -1, -1]),
        "family": ([n // 2, *[n // 8] * 4], [-1, 0, 0, 0, 0]),
    }
    for name, (lengths, parents) in rows.items():
        for shift in (0, 3):  # other lengths: what plans anew or compiles anew shows itself
            moved = [lengths[0] - shift, *lengths[1:]]
            starts = torch.tensor([0, *torch.tensor(moved).cumsum(0).tolist()])
            q, k, v = (torch.randn(sum(moved), heads, text.attention_head_dim, device=DEVICE, dtype=size.dtype,
                                   requires_grad=True)
                       for heads in (text.num_attention_heads, *[text.num_key_value_heads] * 2))  # fmt: skip

            def both(starts: Tensor = starts, parents: list[int] = parents, qkv: Any = (q, k, v)) -> None:
                plan = packed_plan(
                    Segments(starts=starts, parents=torch.tensor(parents)), dtype=size.dtype, device=DEVICE,
                    implementation="auto", width=text.attention_head_dim,
                )  # fmt: skip
                attend(*qkv, plan=plan).sum().backward()

            began = time.perf_counter()
            failed = tried(both)
            wait()
            which = "first" if not shift else "new_lengths"
            figures[f"{name}_{which}_ms"] = failed or 1000 * (time.perf_counter() - began)
        figures[f"{name}_ms"] = tried(lambda f=both: 1000 * seconds(f))  # type: ignore[misc]
        figures[f"{name}_gib"] = tried(lambda f=both: peak_gib(f))  # type: ignore[misc]
    return {"figures": figures}


def _gradients(model: ArcVideoForConditionalGeneration, batch: Batch) -> list[Tensor]:
    model.zero_grad()
    (loss_of(NextToken(), batch, run=forward_of(model)).total / batch.target_weights.sum()).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def determinism(size: Size) -> dict[str, Any]:
    """Are the gradients of one row the same twice, and what does it cost to make them so?"""
    special, settings = SpecialIds(), slice_of(settings_of(size), layers=size.layers)
    model = model_of(settings, special=special).to(DEVICE, size.dtype)
    batch = batch_of(settings, special=special, frames=size.frames, text=size.text).to(DEVICE)
    figures: dict[str, Any] = {}
    for name, on in (("free", False), ("strict", True)):

        def measure(on: bool = on) -> tuple[int, float]:
            torch.use_deterministic_algorithms(on, warn_only=False)
            one, two = (_gradients(model, batch) for _ in range(2))
            same = int(all(torch.equal(a, b) for a, b in zip(one, two, strict=True)))
            return same, seconds(lambda: _gradients(model, batch), rounds=1)

        found = tried(measure)
        torch.use_deterministic_algorithms(False)
        if isinstance(found, str):
            figures[f"{name}_equal"] = found
        else:
            figures[f"{name}_equal"], figures[f"{name}_s"] = found
    return {"figures": figures, "predicted": {"strict_equal": 1}}


def sft(size: Size) -> dict[str, Any]:
    """Forward and backward of a full row at full depth, gradients dropped as they come: time, MFU, memory."""
    special = SpecialIds()
    config = stage_config(["stage=sft", f"model={size.model}"])
    settings = settings_of(size)
    torch.manual_seed(0)
    with DEVICE:
        torch.set_default_dtype(size.dtype)
        model = model_of(settings, special=special)
        torch.set_default_dtype(torch.float32)
    model = model.to(size.dtype)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    batch = batch_of(settings, special=special, frames=size.frames, text=size.text)
    work = useful_flops(batch, settings=settings, trained=TRAIN)
    batch = batch.to(DEVICE)
    figures: dict[str, Any] = {"tokens": batch.input_ids.numel()}
    predicted: dict[str, Any] = {}

    def both() -> None:
        (loss_of(NextToken(), batch, run=forward_of(model)).total / batch.target_weights.sum()).backward()

    ways = {"full": ("full", "none"), "selective": ("selective", "none")}
    if CUDA:  # compiling takes most of a minute of a rehearsal and tells nothing there
        ways |= {"full_compiled": ("full", "elementwise"), "selective_compiled": ("selective", "elementwise")}
    for name, (recompute, fused) in ways.items():
        model.adopt(replace(settings, activation_checkpointing=recompute, compile=fused))
        took = tried(lambda: seconds(both, rounds=2))
        figures[f"{name}_s"] = took
        if isinstance(took, str):
            continue
        figures[f"{name}_mfu"] = work / took / peak()
        figures[f"{name}_gib"] = peak_gib(both)
        figures["best_mfu"] = max(figures.get("best_mfu", 0.0), figures[f"{name}_mfu"])
        print(json.dumps({"figures": figures, "predicted": predicted}), flush=True)
        if fused != "none":
            continue
        like = replace(config, model=replace(config.model, activation_checkpointing=recompute))
        row = Row(frames=size.frames, text=batch.input_ids.numel() - 1 - size.frames * settings.tokens_per_frame,
                  branches=(), targets=batch.target_ids.numel())  # fmt: skip
        traced = tried(lambda like=like, row=row: trace_row(like, row=row).peak / GIB)  # type: ignore[misc]
        predicted[f"{name}_gib"] = traced
        if recompute == "full" and CUDA and not isinstance(traced, str):
            figures["peak_over_trace"] = figures["full_gib"] / traced
    return {"figures": figures, "predicted": predicted | {"best_mfu": 0.53}}


def vit(size: Size) -> dict[str, Any]:
    """Frames a second through the vision tower, by frames of a call."""
    settings = slice_of(settings_of(size), layers=10**6 if CUDA else size.layers)
    small = replace(settings, text=replace(settings.text, num_hidden_layers=1))
    model = model_of(small, special=SpecialIds()).to(DEVICE, size.dtype)
    side, figures = settings.vision.force_image_size, {}
    for count in (16, 64, 150) if CUDA else (2,):
        pixels = torch.randn(count, 3, side, side, device=DEVICE, dtype=size.dtype)

        def encode(pixels: Tensor = pixels) -> Tensor:
            with torch.no_grad():
                return model.encode_vision(pixels)

        figures[f"frames_per_s_{count}"] = tried(lambda f=encode, n=count: n / seconds(f))  # type: ignore[misc]
        figures[f"gib_{count}"] = tried(lambda f=encode: peak_gib(f))  # type: ignore[misc]
    return {"figures": figures}


def main() -> int:
    """Run one step."""
    from benchmarks.gpu_rollouts import grpo, ranks, rollouts, state

    steps = {"environment": environment, "tests": tests, "ceilings": ceilings, "backends": backends,
             "determinism": determinism, "sft": sft, "vit": vit, "rollouts": rollouts, "grpo": grpo, "state": state,
             "ranks": ranks}  # fmt: skip
    name, size = sys.argv[1:3]
    print(json.dumps(steps[name](SIZES[size])), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
