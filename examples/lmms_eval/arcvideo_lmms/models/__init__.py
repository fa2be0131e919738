"""Models by name, for LMMS_EVAL_PLUGINS=arcvideo_lmms: without installing this folder."""

AVAILABLE_MODELS = {"arcvideo": "ArcVideo"}
