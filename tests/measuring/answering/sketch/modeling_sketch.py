"""The tiny model: patches in place of the video marks, each with the time of its step."""

import torch
from transformers import Qwen2ForCausalLM

from .configuration_sketch import SketchConfig


class SketchForConditionalGeneration(Qwen2ForCausalLM):
    """A decoder that sees."""

    config_class = SketchConfig

    def __init__(self, config):
        """Add what turns patches and times into embeddings."""
        super().__init__(config)
        self.patches = torch.nn.Linear(3 * config.patch**2, config.hidden_size)
        self.when = torch.nn.Linear(1, config.hidden_size)
        self.post_init()

    def forward(
        self, input_ids=None, inputs_embeds=None, pixel_values_videos=None, video_grid_thw=None,
        second_per_grid_ts=None, **others,
    ):  # fmt: skip
        """Return the logits; later steps hold no video mark and see the patches through the cache."""
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        here = None if input_ids is None else input_ids == self.config.video_token_id
        if pixel_values_videos is not None and here is not None and here.any():
            seen = self._seen(pixel_values_videos, grid=video_grid_thw[0], seconds=second_per_grid_ts[0])
            inputs_embeds = inputs_embeds.masked_scatter(here[..., None], seen.to(inputs_embeds.dtype))
        return super().forward(inputs_embeds=inputs_embeds, **others)

    def _seen(self, pixels, *, grid, seconds):
        steps, rows, columns = grid.tolist()
        made = self.patches(pixels.flatten(1)).view(steps, rows // 2, 2, columns // 2, 2, -1).mean((2, 4)).flatten(1, 2)
        times = (torch.arange(steps, device=pixels.device) * seconds).to(pixels.dtype)
        return (made + self.when(times[:, None])[:, None]).flatten(0, 1)
