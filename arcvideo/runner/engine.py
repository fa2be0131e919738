"""The only file that knows DeepSpeed: one training step, and the whole training state by name.

Frozen modules are hidden from DeepSpeed (`HiddenModules`), so it partitions, casts and synchronises trained
parameters only. bf16 under ZeRO 1 to 3 means bf16 weights with fp32 masters; under ZeRO 0 it means fp32 weights in
autocast, the same arithmetic without a second copy. The state is read and written per parameter, in fp32, so it
depends neither on the ZeRO stage nor on the number of ranks.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from arcvideo.runner.optimizer import build_optimizer
from arcvideo.runner.ranks import World
from arcvideo.runner.settings import EngineSettings, OptimizerSettings, zero_stage
from arcvideo.runner.trainable import HiddenModules

_NEVER = 1 << 62


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What one optimizer step did."""

    grad_norm: float
    """Global L2 norm of the gradient before clipping; inf or nan when it was not finite."""
    applied: bool
    """False: the gradient was not finite and the weights kept every bit."""


class _Policy(nn.Module):
    """The model as DeepSpeed calls it: the forward returns one tensor, which DeepSpeed can hook."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Tensor:
        return self.model(**inputs).logits


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
            model: requires_grad is already set (`train_only`); its forward returns an object with `logits`.
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
        half = precision == "bf16" and self.stage > 0
        self._autocast = precision == "bf16" and not half
        self._trained: dict[str, Any] = {
            name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        self._names = list(self._trained)
        self.optimizer = build_optimizer(self._trained.items(), settings=optimizer)
        self._hidden = HiddenModules(model)
        self._hidden.compute_in(torch.bfloat16 if half else torch.float32, device=world.device)
        masters = {name: parameter.detach().float() for name, parameter in self._trained.items()} if half else {}
        for parameter in self._trained.values():
            parameter.data = parameter.data.float()
        # BF16_Optimizer prints the memory in use at every group.
        with redirect_stdout(io.StringIO()):
            self._deepspeed, *_ = deepspeed.initialize(
                model=_Policy(model),
                optimizer=self.optimizer,
                config=_deepspeed_config(settings, precision=precision, clip_norm=clip_norm),
            )
        # DeepSpeed makes its fp32 masters from bf16 weights; start from all the bits there were.
        for name, value in masters.items():
            self._set(self._trained[name], value, kind=None)

    @property
    def device(self) -> torch.device:
        """Where batches must be."""
        return self.world.device

    @contextmanager
    def precision(self) -> Iterator[None]:
        """The arithmetic of a training forward, for forwards that others run on `model`."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16) if self._autocast else nullcontext():
            yield

    def __call__(self, **inputs: Any) -> Tensor:
        """Logits at the target positions, (T, V)."""
        with self.precision():
            return self._deepspeed(**inputs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate the gradient of `loss`, this rank's share of the global loss.

        The gradient of a step is the sum over ranks and micro-batches of what is passed here. A non-finite loss
        poisons the gradient on purpose, so that `step` refuses it on all ranks.

        Args:
            loss: scalar.
            last: whether this is the step's last micro-batch; ranks must agree on their number.
        """
        self._deepspeed.set_gradient_accumulation_boundary(last)
        sane = torch.where(torch.isfinite(loss.detach()), 1.0, float("nan"))
        # DeepSpeed averages over ranks; we sum.
        self._deepspeed.backward(loss * sane * self.world.size)

    def set_lr(self, ratio: float) -> None:
        """Set every group's learning rate to this share of its peak."""
        for group in self._basic().param_groups:
            group["lr"] = group["peak_lr"] * ratio

    def lrs(self) -> dict[str, float]:
        """Present learning rate per module (of its matrices)."""
        return {group["module"]: float(group["lr"]) for group in reversed(self._basic().param_groups)}

    def step(self) -> StepOutcome:
        """Clip and apply the accumulated gradient, or drop it when it is not finite."""
        if self.stage == 0:
            norm = self._clip()
            if not torch.isfinite(norm):
                self._deepspeed.zero_grad()
                return StepOutcome(grad_norm=float(norm), applied=False)
            self._deepspeed.step()
            self.steps_applied += 1
            return StepOutcome(grad_norm=float(norm), applied=True)
        self._deepspeed.step()
        applied = bool(self._deepspeed.was_step_applied())
        self.steps_applied += int(applied)
        norm = self._deepspeed.get_global_grad_norm()
        return StepOutcome(grad_norm=float("inf") if norm is None else float(norm), applied=applied)

    def _clip(self) -> Tensor:
        gradients = [parameter.grad for parameter in self._trained.values() if parameter.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)).float())
        if self.clip_norm > 0:
            # Same formula as ZeRO's, so that the stages agree.
            factor = torch.clamp((norm + 1e-6) / self.clip_norm, min=1.0)
            torch._foreach_div_(gradients, factor)
        return norm

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Name -> parameter object of everything that trains (under ZeRO-3 their data may be elsewhere)."""
        return dict(self._trained)

    def _basic(self) -> torch.optim.Optimizer:
        # ZeRO-1 to 3 keep our optimizer inside theirs, sometimes rebuilt around flat tensors.
        return self._deepspeed.optimizer if self.stage == 0 else self._deepspeed.optimizer.optimizer

    # --- the training state, by name ---

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Trained tensors in fp32 on the CPU, whole; every rank must run through all of them."""
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self._trained.items():
            full = parameter.detach() if self.stage == 0 else safe_get_full_fp32_param(parameter)
            yield name, full.detach().to("cpu", torch.float32, copy=True)

    def optimizer_state(self) -> Iterator[tuple[str, Tensor]]:
        """Pairs (`<kind>/<parameter>`, fp32 tensor), whole; nothing before the first applied step."""
        from deepspeed.utils import safe_get_full_optimizer_state

        if self.steps_applied == 0:
            return
        self._link_states()
        for name, parameter in self._trained.items():
            for kind in self._state_kinds(parameter):
                if self.stage == 0:
                    full = self.optimizer.state[parameter][kind]
                else:
                    full = safe_get_full_optimizer_state(parameter, kind)
                yield f"{kind}/{name}", full.detach().to("cpu", torch.float32, copy=True)

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
            self._make_flat_states(steps_applied)
        for name, parameter in self._trained.items():
            self._set(parameter, weights[name], kind=None)
            for kind in self._state_kinds(parameter) if steps_applied else ():
                self._set(parameter, optimizer[f"{kind}/{name}"], kind=kind)
        self._publish_weights()

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

    def _make_flat_states(self, steps: int) -> None:
        # AdamW makes its state in its first step; a resumed run needs it before that, to be filled.
        for flat in self._flat_tensors():
            self._basic().state[flat] = {
                "step": torch.tensor(float(steps), device=flat.device),
                "exp_avg": torch.zeros_like(flat),
                "exp_avg_sq": torch.zeros_like(flat),
            }
        self._link_states()

    def _link_states(self) -> None:
        # ZeRO-1 and 2 map parameters to optimizer states after the first *group* has stepped, when the other groups
        # have none yet, and never again: do it anew.
        if self.stage in (1, 2):
            self._deepspeed.optimizer._hp_optimizer_states_linked = False
            self._deepspeed.optimizer._lazy_init_hp_params_optimizer_state()

    def _flat_tensors(self) -> list[Tensor]:
        zero = self._deepspeed.optimizer
        for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat", "fp32_groups_flat_partition"):
            if hasattr(zero, name):
                return list(getattr(zero, name))
        raise AssertionError(f"deepspeed keeps its fp32 weights elsewhere now: {type(zero).__name__}")

    def _publish_weights(self) -> None:
        """Make the weights used in the forward those of the fp32 masters."""
        zero = self._deepspeed.optimizer
        if self.stage in (1, 2):
            zero.update_lp_params()
        elif self.stage == 3:
            zero._partition_all_parameters()
            for index in range(len(zero.fp16_groups)):
                zero._reassign_or_swap_out_partitioned_parameters(index)
            if zero.persistent_parameters:
                zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    @contextmanager
    def whole_weights(self) -> Iterator[nn.Module]:
        """The model with all weights in place and no collective in its forward, for generation.

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

    def close(self) -> nn.Module:
        """Give the model back whole, on the CPU, with fp32 trained weights; the engine is spent.

        Every rank must call it; the result is meant for rank 0 to export.
        """
        weights = dict(self.weights())
        self._deepspeed.destroy()
        self._hidden.restore()
        if self.stage == 3:
            _forget_partitions(self.model)
        for name, parameter in self._trained.items():
            parameter.data = weights[name]
            parameter.grad = None
        return self.model.to("cpu")


def _forget_partitions(model: nn.Module) -> None:
    for module in model.modules():
        module._parameters = dict(module._parameters)


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
    if precision == "bf16" and stage:
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
