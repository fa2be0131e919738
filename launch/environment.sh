#!/usr/bin/env bash
# Read by the other files: the environment that `make env` made, and what every machine with GPUs wants.
# What is set already stays as it is.
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [ -d "$here/.venv/bin" ]; then
    export PATH="$here/.venv/bin:$PATH"
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}" TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
# Rows differ in length from step to step: segments that can grow leave no holes between them.
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
# A rank that died ends the others instead of leaving them in a collective; one line a problem, no wall of text.
export TORCH_NCCL_ASYNC_ERROR_HANDLING="${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}" NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
# NCCL_SOCKET_IFNAME and NCCL_IB_HCA name the network of your cluster; NCCL finds them itself on most.
