"""The same kind of model on the public HunyuanOCR: other special strings, another rope layout, positions resized."""
