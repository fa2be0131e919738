"""Frames to patches, by the image processor."""

import numpy as np
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature


class SketchImageProcessor(BaseImageProcessor):
    """Pictures of one size, cut into patches in reading order."""

    model_input_names = ("pixel_values_videos", "video_grid_thw")

    def __init__(self, patch=4, cells=4, **others):
        """Take the edge of a patch in pixels, and patches along an edge."""
        super().__init__(**others)
        self.patch, self.cells, self.merge_size, self.temporal_patch_size = patch, cells, 2, 1

    def __call__(self, images=None, videos=None, return_tensors=None, **others):
        """Return patches (steps * cells * cells, 3, patch, patch) float32 and the grid of each video."""
        side = self.patch * self.cells
        pixels, grids = [], []
        for pictures in videos:
            for picture in pictures:
                shown = np.asarray(picture.resize((side, side)), dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1
                cut = shown.reshape(3, self.cells, self.patch, self.cells, self.patch).transpose(1, 3, 0, 2, 4)
                pixels.append(cut.reshape(-1, 3, self.patch, self.patch))
            grids.append([len(pictures), self.cells, self.cells])
        data = {"pixel_values_videos": np.concatenate(pixels), "video_grid_thw": np.array(grids)}
        return BatchFeature(data, tensor_type=return_tensors)
