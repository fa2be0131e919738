"""Weights, tokenizer and adapters as files: read, written, assembled of parts, compared with the released ones."""
