"""Bytes of a video, a sound or a picture in, a Clip out."""
