"""What you type to make shards, and to look at them: `python -m arcvideo.data.shards`. Nothing imports this room."""
