#!/usr/bin/env bash
# One node, one process per GPU: `launch/torchrun.sh stage=sft engine=zero2 ...`; NPROC overrides the count.
# Several: the same on each, with NNODES, NODE_RANK and MASTER_ADDR (MASTER_PORT). A run that was told to stop ends with 85.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
place=(--standalone)
if [ "${NNODES:-1}" -gt 1 ]; then
    place=(--nnodes "$NNODES" --node_rank "${NODE_RANK:?which of the nodes is this}"
        --master_addr "${MASTER_ADDR:?address of node 0}" --master_port "${MASTER_PORT:-29500}")
fi
exec python -m arcvideo.torchrun "${place[@]}" --nproc_per_node "${NPROC:-gpu}" "$@"
