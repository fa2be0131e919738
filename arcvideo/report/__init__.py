"""Report: one HTML page about the runs of a recipe."""
