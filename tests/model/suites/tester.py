"""Our classes as transformers' common suite of models asks for them. Runs among its tests, not among ours."""

from __future__ import annotations

import os
import unittest
from typing import Any

import torch
from transformers import AutoConfig

import arcvideo  # noqa: F401  registers the classes
from arcvideo.model.modeling import ArcVideoForConditionalGeneration

from ...test_modeling_common import ModelTesterMixin, ids_tensor  # type: ignore[import-not-found]


class Tester:
    """A tiny model and a batch of text."""

    batch_size, seq_length, is_training = 3, 7, True
    num_hidden_layers, num_attention_heads, hidden_size = 2, 4, 32

    def get_config(self) -> Any:
        return AutoConfig.from_pretrained(os.environ["ARCVIDEO_TINY"])

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        ids = ids_tensor([self.batch_size, self.seq_length], 50)
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class ArcVideoModelTest(ModelTesterMixin, unittest.TestCase):  # type: ignore[misc]
    all_model_classes = (ArcVideoForConditionalGeneration,)
    all_generative_model_classes = ()
    pipeline_model_mapping: dict[str, Any] = {}  # noqa: RUF012
    has_attentions = True

    def setUp(self) -> None:
        self.model_tester = Tester()
