"""A state that exists whole or not at all: checkpoints, their writing, the random states in them."""
