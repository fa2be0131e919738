"""How a stage is measured on its own held-out clips, after it and during it."""
