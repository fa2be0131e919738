"""Our processor as transformers' common suite of processors asks for it. Runs among its tests, not among ours."""

from __future__ import annotations

import os
import unittest
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from arcvideo.model.disk.tokenizer import load_tokenizer
from arcvideo.processing import ArcVideoProcessor

from ...test_processing_common import ProcessorTesterMixin  # type: ignore[import-not-found]

DECODED = "decoded frames need their rate, `fps`, and a picture beside a video of one question needs a tag of its own"


class ArcVideoProcessorTest(ProcessorTesterMixin, unittest.TestCase):  # type: ignore[misc]
    """Parts are a tokenizer alone: frames and mels are the processor's own."""

    processor_class = ArcVideoProcessor

    @classmethod
    def _setup_tokenizer(cls) -> PreTrainedTokenizerFast:
        return load_tokenizer(Path(os.environ["ARCVIDEO_TINY"]) / "tokenizer")

    @staticmethod
    def prepare_processor_dict() -> dict[str, Any]:
        return {"wording": "brief"}

    @unittest.skip("`media` makes what the call takes as `media`")
    def test_call_arguments_not_in_attributes(self) -> None: ...

    @unittest.skip("special strings are the model's: they cannot be chosen when loading")
    def test_save_load_pretrained_additional_features(self) -> None: ...

    @unittest.skip("a text becomes a prompt with its instruction and marks, not the tokenizer's ids alone")
    def test_subprocessor_defaults_0_text(self) -> None: ...

    @unittest.skip("answers are not marked in ids: stages learn from shards, whose answers are known")
    def test_apply_chat_template_assistant_mask(self) -> None: ...

    @unittest.skip(DECODED)
    def test_flat_kwarg_applied_when_modality_dict_lacks_it(self) -> None: ...

    @unittest.skip(DECODED)
    def test_model_input_names(self) -> None: ...
