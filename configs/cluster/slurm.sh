#!/usr/bin/env bash
# A run under Slurm: sbatch --nodes 4 configs/cluster/slurm.sh --config configs/mindllm_3b.yaml --run.dir /shared/runs/3b
#
# From the folder of the checkout, which all nodes see, as they do the folders of token files and of the run. The run
# saves and ends before the time limit or when Slurm takes the nodes away, and the job is queued again until the last
# step is done. docs/cluster.md explains every line.
#SBATCH --job-name=mindllm
#SBATCH --ntasks-per-node=1       # one torchrun a node, which starts one process a GPU
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64        # all that belong to these GPUs
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue                 # after a node has failed, and after preemption
#SBATCH --open-mode=append        # and go on in the same log
#SBATCH --output=%x-%j.log
#SBATCH --signal=B:USR1@600       # ten minutes before the end, to this script
set -euo pipefail
: "${SLURM_JOB_ID:?start it with sbatch}"
[ $# -gt 0 ] || { echo "error: give the options of tools/pretrain.py, at least --config FILE" >&2; exit 2; }

leader=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) # this node, which serves the rendezvous
port=$((20000 + SLURM_JOB_ID % 10000))                              # of this job's own
export LEADER=$leader:$port

# If the network for gradients is not the one that the nodes' names lead to, name its interface, and
# where InfiniBand adapters are not all for this purpose, those that are:
#   export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0 NCCL_IB_HCA=mlx5_0,mlx5_1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # ranks set their own; silences advice
export TORCH_CPP_LOG_LEVEL=${TORCH_CPP_LOG_LEVEL:-ERROR} # a C++ stack for every name not found or connection lost

# The rendezvous outlives every torchrun: served by one of them, it would go with the first that is done, under the
# feet of those that still take their leave of each other. It ends with this script.
python -c "
import signal
from torch.distributed import TCPStore
store = TCPStore('0.0.0.0', $port, is_master=True, wait_for_workers=False)
signal.pause()" &
trap "kill $! 2>/dev/null" EXIT

# On each node. USR1 asks the workers, not torchrun, which would give them 30 seconds and fail. torchrun and they are
# started with the signal ignored, as srun may send it to all of them; a worker listens once it trains.
# shellcheck disable=SC2016
on_each_node='
  trap "" USR1
  torchrun \
    --nnodes "$SLURM_NNODES" \
    --nproc-per-node "${PROCESSES:-gpu}" \
    --max-restarts "${MAX_RESTARTS:-3}" \
    --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$LEADER" \
    --rdzv-conf "is_host=0,join_timeout=600,read_timeout=120" \
    tools/pretrain.py "$@" &
  torchrun=$!
  trap "pkill -TERM --parent $torchrun" USR1
  while kill -0 $torchrun 2>/dev/null; do wait $torchrun && code=0 || code=$?; done # a signal interrupts wait
  exit $code'
srun --kill-on-bad-exit=1 bash -c "$on_each_node" node "$@" &
srun=$!

stopped=
trap 'stopped=1; kill -USR1 $srun' USR1 # srun passes it on to its tasks
while kill -0 $srun 2>/dev/null; do wait $srun && code=0 || code=$?; done
if [ -n "$stopped" ] && [ "$code" -eq 0 ]; then
  scontrol requeue "$SLURM_JOB_ID" # saved; the same job goes on from there
fi
exit "$code"
