"""ARC-Hunyuan-Video's own parts: vision tower and merger, decoder, fresh weights."""
