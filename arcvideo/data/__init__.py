"""Shards, index, plan, rendering, packing: from tars on disk to packed batches, in a reproducible order."""
