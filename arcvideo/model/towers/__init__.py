"""From clips to fused tokens: the audio tower, the projector behind it, sound added onto the picture, a cache."""
