"""Pages of stages, laid out like arcvideo's conf/."""
