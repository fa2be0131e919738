"""The only file that knows DeepSpeed: one training step, and the whole training state by name.

Frozen modules are hidden from DeepSpeed (`HiddenModules`), so it partitions, casts and synchronises trained
parameters only. bf16 under ZeRO 1 to 3 means bf16 weights with fp32 masters; under ZeRO 0 it means fp32 weights in
autocast, the same arithmetic without a second copy. The state is read and written per parameter, in fp32, so it
depends neither on the ZeRO stage nor on the number of ranks.
"""

from __future__ import annotations

import io
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from arcvideo.processes.ranks import World
from arcvideo.runner.optimizer import build_optimizer
from arcvideo.runner.settings import EngineSettings, OptimizerSettings, zero_stage
from arcvideo.runner.trainable import HiddenModules
from arcvideo.runner.zero import (
    forget_gradients,
    forget_partitions,
    from_first,
    has_masters,
    judged_norm,
    link_states,
    make_flat_states,
    publish_weights,
)

_NEVER = 1 << 62

Refuse = Callable[[float], bool]
"""Global gradient norm -> whether to drop the step."""


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What one optimizer step did."""

    grad_norm: float
    """Global L2 norm of the gradient before clipping; inf or nan when it was not finite."""
    applied: bool
    """False: the step was dropped and the weights kept every bit."""


class _Policy(nn.Module):
    """The model as DeepSpeed calls it: the forward returns one tensor, which DeepSpeed can hook."""

    def __init__(self, model: nn.Module, *, precision: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.model = model
        self._precision = precision

    def forward(self, **inputs: Any) -> Tensor:
        """Return logits, or with `ask` the rows of `Scores.of`."""
        # In here, because DeepSpeed switches off an autocast that it finds around its own forward on CUDA.
        with self._precision():
            return getattr(self.model(**inputs), "scores" if "ask" in inputs else "logits")


class Engine:
    """A model, its optimizer and DeepSpeed, for one process of the run."""

    def __init__(
        self,
        model: nn.Module,
        *,
        world: World,
        settings: EngineSettings,
        optimizer: OptimizerSettings,
        precision: str = "fp32",
        clip_norm: float = 1.0,
    ) -> None:
        """Hand the trained part of `model` to DeepSpeed.

        Args:
            model: requires_grad is already set (`train_only`); its forward returns an object with `logits` or `scores`.
            world: from `ranks.join()`.
            settings: DeepSpeed's own keys.
            optimizer: rates and kind.
            precision: fp32 or bf16.
            clip_norm: largest global gradient norm; 0 for no clipping.
        """
        deepspeed = _import_deepspeed(world)
        self.world = world
        self.model = model
        self.stage = zero_stage(settings)
        self.clip_norm = clip_norm
        self.steps_applied = 0
        half = has_masters(settings, precision=precision)
        self._autocast = precision == "bf16" and not half
        self._trained: dict[str, Any] = {
            name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        self._names = list(self._trained)
        self._given = next(model.parameters()).dtype
        self.optimizer = build_optimizer(self._trained.items(), settings=optimizer)
        self._hidden = HiddenModules(model)
        self._hidden.compute_in(torch.bfloat16 if half else torch.float32, device=world.device)
        # The first rank has all the bits there were; the others may have read their weights in bf16.
        first = world.first
        masters = {name: part.detach().float() if first else None for name, part in self._trained.items() if half}
        shapes = {name: parameter.shape for name, parameter in self._trained.items()}
        for parameter in () if half else self._trained.values():
            parameter.data = parameter.data.float()
        self._policy = _Policy(model, precision=self.precision)
        # BF16_Optimizer prints the memory in use at every group.
        with redirect_stdout(io.StringIO()):
            self._deepspeed, *_ = deepspeed.initialize(
                model=self._policy,
                optimizer=self.optimizer,
                config=_deepspeed_config(settings, precision=precision, clip_norm=clip_norm),
            )
        # At ZeRO 0 a rank alone cuts nothing and adds up with nobody: unless the user's keys ask DeepSpeed for more
        # (its profiler, say), going through it costs a good part of a millisecond a step and changes no bit.
        self._direct = self.stage == 0 and world.size == 1 and set(settings) <= {"zero_optimization"}
        if self.stage == 0:
            # DeepSpeed's own walks the whole tree of modules.
            self._deepspeed.zero_grad = self._forget
            # A rank alone would copy all gradients into one bucket and back.
            self._deepspeed.enable_backward_allreduce = world.size > 1
        # DeepSpeed makes its fp32 masters from bf16 weights; start from all the bits there were.
        for name, shape in shapes.items() if half else ():
            self._set(self._trained[name], from_first(masters.pop(name), shape=shape, world=world), kind=None)

    @property
    def device(self) -> torch.device:
        """Where batches must be."""
        return self.world.device

    def precision(self) -> AbstractContextManager[Any]:
        """Return the arithmetic of a training forward, for forwards that others run on `model`."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self._autocast else nullcontext()

    def __call__(self, **inputs: Any) -> Tensor:
        """Return logits at the target positions, (T, V), or with `ask` the (1 + n, T) rows of `Scores.of`."""
        return self._policy.forward(**inputs) if self._direct else self._deepspeed(**inputs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate the gradient of `loss`, this rank's share of the global loss.

        The gradient of a step is the sum over ranks and micro-batches of what is passed here. A non-finite loss
        poisons the gradient on purpose, so that `step` refuses it on all ranks.

        Args:
            loss: scalar.
            last: whether this is the step's last micro-batch; ranks must agree on their number.
        """
        # 1 for a finite loss, nan for any other.
        sane = loss.detach() * 0 + 1
        if self._direct:
            loss.backward(sane)
            return
        self._deepspeed.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks; we sum.
        self._deepspeed.backward(loss * (sane * self.world.size))

    def set_lr(self, ratio: float) -> None:
        """Set every group's learning rate to this share of its peak."""
        for group in self._basic().param_groups:
            group["lr"] = group["peak_lr"] * ratio

    def lrs(self) -> dict[str, float]:
        """Present learning rate per module (of its matrices)."""
        return {group["module"]: float(group["lr"]) for group in reversed(self._basic().param_groups)}

    def step(self, *, refuse: Refuse = lambda norm: False) -> StepOutcome:
        """Clip and apply the accumulated gradient, or drop it, leaving every bit of weights and optimizer state.

        Args:
            refuse: told the global norm of a finite gradient before anything moves; True drops the step. It must
                answer alike on all ranks.
        """
        if self.stage == 0:
            gradients = self._gradients()
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)).float())
            length = float(norm)
            applied = math.isfinite(length) and not refuse(length)
            if applied:
                self._clip(gradients, norm)
                (self.optimizer if self._direct else self._deepspeed).step()
                self.steps_applied += 1
            self._forget()
            return StepOutcome(grad_norm=length, applied=applied)
        with judged_norm(self._deepspeed.optimizer, refuse=refuse) as seen:
            self._deepspeed.step()
        applied = bool(self._deepspeed.was_step_applied())
        if not applied:
            forget_gradients(self._deepspeed.optimizer, stage=self.stage)
        self.steps_applied += int(applied)
        total = self._deepspeed.get_global_grad_norm() if applied else seen[-1] if seen else float("inf")
        return StepOutcome(grad_norm=float(total), applied=applied)

    def _gradients(self) -> list[Tensor]:
        """Return what no batch of the step reached has a gradient of zero, alone as among ranks: its weights still
        decay.
        """
        gradients = []
        for parameter in self._trained.values():
            if (gradient := parameter.grad) is None:
                gradient = parameter.grad = torch.zeros_like(parameter)
            gradients.append(gradient)
        return gradients

    def _clip(self, gradients: list[Tensor], norm: Tensor) -> None:
        if self.clip_norm > 0:
            # Same formula as ZeRO's, so that the stages agree.
            excess = (norm + 1e-6) / self.clip_norm
            if excess > 1:
                torch._foreach_div_(gradients, excess)

    def _forget(self) -> None:
        for parameter in self._trained.values():
            parameter.grad = None

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Name -> parameter object of everything that trains (under ZeRO-3 their data may be elsewhere)."""
        return dict(self._trained)

    def _basic(self) -> torch.optim.Optimizer:
        # ZeRO-1 to 3 keep our optimizer inside theirs, sometimes rebuilt around flat tensors.
        return self._deepspeed.optimizer if self.stage == 0 else self._deepspeed.optimizer.optimizer

    # --- the training state, by name ---

    def live_state(self) -> Iterator[tuple[str, str, Tensor]]:
        """Yield (`weights` or `optimizer`, name, whole tensor) of everything that a checkpoint holds.

        Tensors may be the live ones: copy them before the next step. Every rank must run through all of them.
        Optimizer tensors are called `<kind>/<parameter>`; there are none before the first applied step.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        for name, parameter in self._trained.items():
            yield "weights", name, parameter.detach() if self.stage == 0 else safe_get_full_fp32_param(parameter)
        if self.steps_applied == 0:
            return
        link_states(self._deepspeed.optimizer, stage=self.stage)
        for name, parameter in self._trained.items():
            for kind in self._state_kinds(parameter):
                if self.stage == 0:
                    yield "optimizer", f"{kind}/{name}", self.optimizer.state[parameter][kind]
                else:
                    yield "optimizer", f"{kind}/{name}", safe_get_full_optimizer_state(parameter, kind)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Copy of the trained tensors in fp32 on the CPU, whole; every rank must run through all of them."""
        return self._copies("weights")

    def optimizer_state(self) -> Iterator[tuple[str, Tensor]]:
        """Return the same of the optimizer's tensors."""
        return self._copies("optimizer")

    def _copies(self, wanted: str) -> Iterator[tuple[str, Tensor]]:
        for kind, name, tensor in self.live_state():
            if kind == wanted:
                yield name, tensor.detach().to("cpu", torch.float32, copy=True)

    def _state_kinds(self, parameter: nn.Parameter) -> tuple[str, ...]:
        by_muon = self.stage == 0 and any(
            group["muon"] and any(parameter is member for member in group["params"])
            for group in self.optimizer.param_groups
        )
        return ("momentum_buffer",) if by_muon else ("exp_avg", "exp_avg_sq")

    def load_state(self, *, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], steps_applied: int) -> None:
        """Continue from a saved state: the inverse of `weights` and `optimizer_state`.

        Raises:
            ValueError: the names saved are not the names trained.
        """
        if set(weights) != set(self._names):
            odd = sorted(set(weights) ^ set(self._names))
            raise ValueError(
                f"the checkpoint holds other trained parameters than this run, e.g. {odd[0]!r}: did stage.train change?"
            )
        self.steps_applied = steps_applied
        if steps_applied and self.stage:
            make_flat_states(self._deepspeed.optimizer, self._basic(), stage=self.stage, steps=steps_applied)
        for name, parameter in self._trained.items():
            self._set(parameter, weights[name], kind=None)
            for kind in self._state_kinds(parameter) if steps_applied else ():
                self._set(parameter, optimizer[f"{kind}/{name}"], kind=kind)
        publish_weights(self._deepspeed.optimizer, stage=self.stage)

    def _set(self, parameter: Any, value: Tensor, *, kind: str | None) -> None:
        if self.stage == 0:
            if kind is None:
                parameter.data.copy_(value)
            else:
                state = self.optimizer.state[parameter]
                state[kind] = value.to(parameter.device, copy=True)
                if kind != "momentum_buffer":
                    state["step"] = torch.tensor(float(self.steps_applied), device=parameter.device)
            return
        if self.stage < 3:
            parameter.set_full_hp_param(value.to(self.device), kind)
            return
        # ZeRO-3 pads the last rank's part; its own whole-tensor setter forgets that.
        part = parameter.ds_tensor.ds_numel
        padded = torch.zeros(part * self.world.size)
        padded[: value.numel()] = value.flatten()
        parameter._z3_optimizer.set_local_hp_param(
            padded.narrow(0, part * self.world.rank, part).to(self.device), parameter, kind
        )

    @contextmanager
    def whole_weights(self) -> Iterator[nn.Module]:
        """Yield the model with all weights in place and no collective in its forward, for generation.

        Under ZeRO-3 all ranks must enter and leave together; in between each may run as many forwards as it likes.
        """
        if self.stage < 3:
            yield self.model
            return
        import deepspeed

        offload = self._deepspeed.optimizer.parameter_offload
        with deepspeed.zero.GatheredParameters(list(self._trained.values())):
            for parameter in self._trained.values():
                parameter.ds_active_sub_modules.clear()
            for hook in [*offload.forward_hooks, *offload.backward_hooks]:
                hook.remove()
            offload.forward_hooks, offload.backward_hooks = [], []
            try:
                yield self.model
            finally:
                offload._register_deepspeed_module(offload.module)

    def close(self, *, everywhere: bool = True) -> nn.Module:
        """Give the model back whole, on the CPU, in the type it came in; the engine is spent. Every rank must call it.

        Args:
            everywhere: whether every rank gets the weights; otherwise only the first, which exports, and what trained
                is empty elsewhere. Eight ranks of a 7B would hold 224 GiB.
        """
        keeps = everywhere or self.world.first
        # Every rank runs through all of them, because gathering a tensor takes all ranks.
        weights = {
            name: tensor.detach().to("cpu", self._given, copy=True) if keeps else torch.empty(0, dtype=self._given)
            for kind, name, tensor in self.live_state()
            if kind == "weights"
        }
        self._deepspeed.destroy()
        self._hidden.restore()
        if self.stage == 3:
            forget_partitions(self.model)
        for name, parameter in self._trained.items():
            parameter.data = weights[name]
            parameter.grad = None
        return self.model.to("cpu")


def _deepspeed_config(settings: EngineSettings, *, precision: str, clip_norm: float) -> dict[str, Any]:
    """DeepSpeed's configuration: the user's keys and what the runner decides."""
    stage = zero_stage(settings)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": _NEVER,
        "wall_clock_breakdown": False,
        # ZeRO 0 leaves clipping to `Engine.step`, which must see the norm before the weights move.
        "gradient_clipping": clip_norm if stage else 0.0,
        **settings,
    }
    if has_masters(settings, precision=precision):
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        config.setdefault("data_types", {"grad_accum_dtype": "fp32"})
    return config


def _import_deepspeed(world: World) -> Any:
    """DeepSpeed, quiet, and on a CPU without the shared-memory op it would compile for a minute or two."""
    # DeepSpeed calls torch's old names of these collectives many times a step.
    warnings.filterwarnings("ignore", message=".*torch.distributed.*is deprecated", category=FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if world.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if world.device.type == "cpu":
        # A private name: tests/runner/test_engine.py fails when DeepSpeed renames it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend="nccl" if world.device.type == "cuda" else "gloo", verbose=False)
    return deepspeed
