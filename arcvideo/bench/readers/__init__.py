"""One file for each public benchmark: its folder becomes questions."""
