"""The loop and one optimizer step, and the proofs about what trained."""
