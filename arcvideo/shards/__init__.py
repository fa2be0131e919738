"""What lies on disk: tars of clips, their indexes and token counts, and the copies of remote ones."""
