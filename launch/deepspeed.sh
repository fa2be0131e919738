#!/usr/bin/env bash
# Several nodes from one shell over ssh: `HOSTFILE=hosts launch/deepspeed.sh stage=sft engine=zero3 ...`.
# The hostfile has one line a node: `worker-1 slots=8`. The same checkout and environment must be on each.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec deepspeed --hostfile "${HOSTFILE:?name the file of hosts}" --module arcvideo.train "$@"
