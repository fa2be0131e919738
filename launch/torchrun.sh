#!/usr/bin/env bash
# One node: one process per GPU. `launch/torchrun.sh stage=sft engine=zero2 ...`; NPROC overrides the count.
set -euo pipefail
exec torchrun --standalone --nproc_per_node "${NPROC:-gpu}" -m arcvideo.train "$@"
