"""What a project of one's own adds to arcvideo."""
