"""Measuring a checkpoint: questions from shards or benchmarks, several arms, a folder that is never overwritten."""
