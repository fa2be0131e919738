"""Tasks, for LMMS_EVAL_PLUGINS=arcvideo_lmms; `--include_path` takes this folder too."""
