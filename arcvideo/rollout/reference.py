"""The frozen copy of the parent that the KL is measured against."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from arcvideo.model.disk.lora import disable_adapters


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a model with its own copy of everything that trains; what is frozen (the towers) is shared, not copied.

    Make it before the first step. Under ZeRO-3 call it while the weights are gathered; the copy is then whole on
    every rank.
    """
    reference = copy.copy(model)
    reference._modules = dict(model._modules)
    for name, child in model.named_children():
        if any(parameter.requires_grad for parameter in child.parameters()):
            shared = {id(parameter): parameter for parameter in child.parameters() if not parameter.requires_grad}
            # Frozen modules that DeepSpeed must not see are plain attributes: `parameters()` does not find them.
            hidden = [value for module in child.modules() for value in vars(module).values()
                      if isinstance(value, nn.Module)]  # fmt: skip
            memo: dict[int, Any] = {**shared, **{id(value): value for value in hidden}}
            copied = copy.deepcopy(child, memo).requires_grad_(False)
            for module in copied.modules():
                # DeepSpeed's dictionary would look for partitioned parameters, and its hooks would gather them.
                module._parameters = dict(module._parameters)
            reference._modules[name] = copied
    # The parent is what the weights are without adapters.
    disable_adapters(reference)
    return reference.eval()
