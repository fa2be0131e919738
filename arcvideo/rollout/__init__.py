"""Rollouts: the sampler, the rewards and the source that turns both into batches."""
