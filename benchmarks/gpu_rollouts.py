"""The steps of `make gpu-day` about rollouts, updates, and a run that is killed and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from arcvideo.model.arc_hunyuan.language import Decoder, LanguageModel
from arcvideo.model.settings import TextSettings
from arcvideo.model.special import SpecialIds
from arcvideo.objectives.next_token import NextToken
from arcvideo.objectives.scores import loss_of
from arcvideo.preflight.machine import BANDWIDTH
from arcvideo.processes.ranks import join
from arcvideo.runner.engine import Engine
from arcvideo.runner.settings import OptimizerSettings
from arcvideo.sampling.decode import Decoding
from arcvideo.sampling.forked import ForkedCache, PromptRun
from arcvideo.sampling.graph import Graphs
from arcvideo.sampling.roofline import bytes_per_turn, tokens_per_second
from arcvideo.sampling.settings import Sampling
from arcvideo.sampling.step import TokenStep
from benchmarks import grpo as group_updates
from benchmarks.gpu_steps import CUDA, DEVICE, GIB, Size, peak_gib, seconds, settings_of, tried, wait
from benchmarks.slice import batch_of, model_of, slice_of

STEPS, KILLED_AFTER = 4, 2


def bandwidth() -> float:
    """Bytes a second of the device: its data sheet's, or on a CPU what a copy reaches."""
    if CUDA:
        name = torch.cuda.get_device_name().lower()
        known = [rate for kind, rate in BANDWIDTH.items() if kind in name.replace(" ", "-").split("-")]
        if known:
            return known[0]
    big = torch.empty(1 << 27, dtype=torch.uint8, device=DEVICE)
    return 2 * big.numel() / seconds(big.clone)


def language_of(text: TextSettings, *, dtype: torch.dtype) -> LanguageModel:
    """Return a decoder of random weights and its tied head."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with DEVICE:
            language = LanguageModel(text, decoder=Decoder(text))
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, weight in language.named_parameters():
            if "norm" not in name:
                weight.normal_(std=0.02)
    language.lm_head.weight = language.model.embed_tokens.weight
    return language.requires_grad_(False).eval()


def forked(text: TextSettings, *, size: Size, prompts: int, static: bool) -> ForkedCache:
    """Return prompts of noise, each by itself, as the sampler holds them on CUDA."""
    shape = (1, text.num_key_value_heads, size.prompt, text.attention_head_dim)

    def layers() -> list[torch.Tensor]:
        return [torch.randn(shape, device=DEVICE, dtype=size.dtype) for _ in range(text.num_hidden_layers)]

    runs = [PromptRun(keys=layers(), values=layers(), mask=None) for _ in range(prompts)]
    return ForkedCache(runs, width=size.group, room=size.turns, static=static)


def rollout(
    language: LanguageModel, text: TextSettings, *, size: Size, prompts: int, way: str, graphs: Graphs | None
) -> tuple[float, torch.Tensor]:
    """Return the seconds of a turn and the ids that were drawn; nothing ends before the last token."""
    rows = prompts * size.group
    cache = forked(text, size=size, prompts=prompts, static=way != "dynamic")
    if graphs is not None:
        graphs.forget()
    decoding = Decoding(
        cache=cache,
        step=TokenStep(language, cache=cache, end=size.prompt + size.turns),
        positions=torch.full((rows,), size.prompt, device=DEVICE),
        noise=torch.rand(rows, size.turns, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
        banned=torch.tensor([0], device=DEVICE),
        settings=Sampling(max_new_tokens=size.turns),
        decode=way,
        graphs=graphs,
    )
    logits = torch.zeros(rows, text.vocab_size, device=DEVICE)
    wait()
    began = time.perf_counter()
    with torch.no_grad():
        answers = decoding.run(logits, stop=torch.tensor([-1]), says=None)
    wait()
    return (time.perf_counter() - began) / size.turns, answers.ids


def rollouts(size: Size) -> dict[str, Any]:
    """Tokens a second by way of decoding and prompts together, beside the roofline; are the tokens the same?"""
    text, figures, predicted = settings_of(size).text, {}, {}
    language = language_of(text, dtype=size.dtype)
    rate = bandwidth()
    graphs = Graphs(device=DEVICE, required=True) if CUDA else None
    for prompts in size.prompts:
        rows = prompts * size.group
        width = torch.empty(0, dtype=size.dtype).element_size()
        like: dict[str, Any] = {"prompts": [size.prompt] * prompts, "rows": rows, "own": size.turns / 2, "width": width}
        most = tokens_per_second(text, **like, bandwidth=rate)
        figures[f"gb_a_turn_{rows}"] = bytes_per_turn(text, **like) / 1e9
        drawn: dict[str, torch.Tensor] = {}
        for way in ("dynamic", "static", *(["cuda_graph"] if CUDA else [])):
            name = f"{way}_tokens_per_s_{rows}"
            torch.manual_seed(prompts)
            run = graphs if way == "cuda_graph" else None
            found = tried(
                lambda p=prompts, w=way, g=run: rollout(language, text, size=size, prompts=p, way=w, graphs=g)
            )
            predicted[name] = most
            if isinstance(found, str):
                figures[name] = found
                continue
            figures[name], drawn[way] = rows / found[0], found[1]
            share = figures[name] / most
            figures[f"share_{rows}"] = max(figures.get(f"share_{rows}", 0.0), share)
            figures[f"{way}_equal_{rows}"] = (
                float((drawn[way] == drawn["dynamic"]).double().mean()) if "dynamic" in drawn else None
            )
            if CUDA:
                figures[f"{way}_reserved_gib_{rows}"] = torch.cuda.memory_reserved() / GIB
            print(json.dumps({"figures": figures, "predicted": predicted}), flush=True)
    return {"figures": figures, "predicted": predicted}


def grpo(size: Size) -> dict[str, Any]:
    """Log-probabilities and update of a group: one shared row against G copies, at the decoder's full width."""
    text = settings_of(size).text
    model = group_updates.decoder(text).to(DEVICE, size.dtype)
    model.activation_checkpointing = "full"
    model._auto_attention = True
    sides = group_updates.lay_out(size.group, prompt=size.prompt, completion=size.completion)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    shared, single = sides.shared.to(DEVICE), [row.to(DEVICE) for row in sides.single]
    figures: dict[str, Any] = {}
    ours = tried(lambda: seconds(lambda: group_updates.one_update(model, [shared]), rounds=2))
    figures["shared_s"] = ours
    figures["shared_gib"] = tried(lambda: peak_gib(lambda: group_updates.one_update(model, [shared])))
    print(json.dumps({"figures": figures}), flush=True)
    # A copy is like any other: two are timed, and a group has G of them.
    theirs = tried(lambda: seconds(lambda: group_updates.one_update(model, single[:2]), rounds=1) * size.group / 2)
    figures["copies_s"] = theirs
    if not isinstance(ours, str) and not isinstance(theirs, str):
        figures["speedup"] = theirs / ours
    gap = tried(lambda: _gap(model, shared, single))
    figures["mean_logprob_gap"] = gap
    bound = group_updates.flop_bound(size.group, prompt=size.prompt, completion=size.completion, text=text)
    return {"figures": figures, "predicted": {"speedup": bound}}


def _gap(model: Any, shared: Any, single: Any) -> float:
    """Mean distance of the log-probabilities of the first completion, shared and copied."""
    count = single[0].target_ids.numel()
    one = group_updates.logprobs_of(model, shared)[:count]
    return float((one - group_updates.logprobs_of(model, single[0])).abs().mean())


def state(size: Size) -> dict[str, Any]:
    """A run that is killed with SIGKILL after two steps and goes on: are weights and losses those of a straight one?"""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        runs = {"straight": ("0", str(STEPS)), "killed": ("0", str(KILLED_AFTER)), "resumed": ("1", str(STEPS))}
        for name, (resume, last) in runs.items():
            command = [sys.executable, "-c", CHILD, folder, name, resume, last, size.model]
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                env=os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
            )
            expected = -signal.SIGKILL if name == "killed" else 0
            if done.returncode != expected:
                sys.stderr.write(done.stderr[-5_000:])
                raise RuntimeError(f"the {name} run ended with {done.returncode}, not {expected}")
        straight, resumed = (torch.load(Path(folder) / f"{name}.pt") for name in ("straight", "resumed"))
        saved = torch.load(Path(folder) / "saved.pt")
        figures["resume_equal"] = int(
            straight["losses"][KILLED_AFTER:] == resumed["losses"]
            and all(torch.equal(one, resumed["weights"][name]) for name, one in straight["weights"].items())
        )
        figures["save_s"], figures["step_s"] = saved["seconds"], straight["seconds"]
        figures["state_gib"] = (Path(folder) / "saved.pt").stat().st_size / GIB
        figures["peak_gib"] = straight["peak_gib"]
    return {"figures": figures, "predicted": {"resume_equal": 1}}


CHILD = "import sys; from benchmarks.gpu_rollouts import training; training(*sys.argv[1:])"


def training(folder: str, name: str, resume: str, last: str, page: str) -> None:
    """Train a slice with ZeRO-2; the run called `killed` saves its state and is killed by itself."""
    from benchmarks.gpu_steps import SIZES

    size = next(one for one in SIZES.values() if one.model == page)
    world = join()
    torch.use_deterministic_algorithms(CUDA)
    special, settings = SpecialIds(), slice_of(settings_of(size), layers=min(size.layers, 4))
    running = Engine(
        model_of(settings, special=special), world=world, settings={"zero_optimization": {"stage": 2 if CUDA else 0}},
        precision="bf16" if CUDA else "fp32", optimizer=OptimizerSettings(lr=1e-4), clip_norm=1.0,
    )  # fmt: skip
    batch = batch_of(settings, special=special, frames=min(size.frames, 30), text=min(size.text, 460)).to(world.device)
    first, saved = 0, Path(folder) / "saved.pt"
    if resume == "1":
        held = torch.load(saved)
        running.load_state(weights=held["weights"], optimizer=held["optimizer"], steps_applied=KILLED_AFTER)
        first = KILLED_AFTER
    losses, took = [], 0.0
    for _ in range(first, int(last)):
        began = time.perf_counter()
        total = loss_of(NextToken(), batch, run=running).total / batch.target_weights.sum()
        running.backward(total, last=True)
        running.step()
        wait()
        took = time.perf_counter() - began
        losses.append(float(total.detach()))
    if name == "killed":
        began = time.perf_counter()
        content = {"weights": dict(running.weights()), "optimizer": dict(running.optimizer_state())}
        torch.save(content | {"seconds": time.perf_counter() - began}, saved)
        os.kill(os.getpid(), signal.SIGKILL)
    peak = torch.cuda.max_memory_allocated() / GIB if CUDA else 0.0
    torch.save({"losses": losses, "weights": dict(running.weights()), "seconds": took, "peak_gib": peak},
               Path(folder) / f"{name}.pt")  # fmt: skip


def ranks(size: Size) -> dict[str, Any]:
    """Two ranks: what an all-reduce reaches."""
    if CUDA and torch.cuda.device_count() < 2:
        return {"skipped": "one GPU"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m",
               "benchmarks.gpu_ranks", str(size.gemm)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stderr[-5_000:])
        raise RuntimeError(f"two ranks ended with {done.returncode}")
    return {"figures": json.loads(done.stdout.splitlines()[-1])}
