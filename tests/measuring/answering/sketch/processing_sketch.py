"""Text and frames to what the model reads."""

import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin


class SketchProcessor(ProcessorMixin):
    """An image processor and a tokenizer, no video processor."""

    attributes = ("image_processor", "tokenizer")
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **others):
        """Take both."""
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, images=None, text=None, videos=None, fps=2.0, return_tensors=None, **others):
        """Return ids, with one video mark a piece, and the video."""
        data = {}
        if videos is not None:
            data = dict(self.image_processor(videos=videos, return_tensors="pt"))
            rates = fps if isinstance(fps, list) else [fps] * len(videos)
            data["second_per_grid_ts"] = torch.tensor(
                [self.image_processor.temporal_patch_size / rate for rate in rates]
            )
            for grid in data["video_grid_thw"]:
                pieces = int(grid.prod()) // self.image_processor.merge_size**2
                text = [one.replace("<|video_pad|>", "<piece>" * pieces, 1) for one in text]
            text = [one.replace("<piece>", "<|video_pad|>") for one in text]
        return BatchFeature({**self.tokenizer(text, return_tensors=return_tensors), **data})
