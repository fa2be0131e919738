"""Which item stands in which pack at which step: a pure function of indexes, settings and seed; no bytes, no torch."""
