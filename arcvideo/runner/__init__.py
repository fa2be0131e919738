"""The loop: engine, checkpoints, schedules, metrics, signals, and the proofs about what trained."""
