"""TinyShorts: generated short videos with known truth."""
