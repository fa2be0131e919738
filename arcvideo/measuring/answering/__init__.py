"""What answers the questions of a measurement: checkpoints of ours, models of transformers, endpoints."""
