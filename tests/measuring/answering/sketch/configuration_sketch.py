"""Settings of the tiny model."""

from transformers import Qwen2Config


class SketchConfig(Qwen2Config):
    """Those of a decoder, with the id that stands for a piece of a video."""

    model_type = "sketch"

    def __init__(self, video_token_id=0, patch=4, **others):
        """Take the id of the video mark and the edge of a patch in pixels."""
        self.video_token_id, self.patch = video_token_id, patch
        super().__init__(**others)
