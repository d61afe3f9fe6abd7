#!/usr/bin/env bash
# Plain torchrun on two hosts (or NODES=n): the same command on each of them, from a checkout at the same place.
#
#   configs/cluster/two_hosts.sh 10.0.0.1:29500 eth0 --config configs/mindllm_3b.yaml --run.dir /shared/runs/3b
#
# The first argument is an address of the host that is to lead, as the others see it, and a free port there; the second,
# the interface of this host in that network; then the options of tools/pretrain.py. The folders of token files and of
# the run must be visible to all hosts under the same names. docs/cluster.md explains every line.
set -euo pipefail
usage="usage: $0 ADDRESS:PORT INTERFACE --config FILE [options of tools/pretrain.py]"
leader=${1:?$usage}
interface=${2:?$usage}
shift 2
cd "$(dirname "$0")/../.."

# This host's address in that network. It is given to torchrun, which would otherwise look up the host's name, and on
# many systems that is 127.0.1.1.
address=$(ip -4 -o addr show dev "$interface" scope global | awk '{ sub("/.*", "", $4); print $4; exit }')
if [ -z "$address" ]; then
  echo "error: interface $interface has no IPv4 address; choose another of those in: ip -4 addr" >&2
  exit 2
fi
# Which host serves the rendezvous: said, not guessed from names.
if [ "$address" = "${leader%:*}" ]; then is_host=1; else is_host=0; fi

# The interface that carries gradients: by default NCCL takes the first that is not a bridge or loopback, and gloo the one
# that the host's name leads to. On InfiniBand NCCL finds its adapters by itself, and uses this one to connect only.
export NCCL_SOCKET_IFNAME=$interface GLOO_SOCKET_IFNAME=$interface
export TORCH_CPP_LOG_LEVEL=${TORCH_CPP_LOG_LEVEL:-ERROR} # a C++ stack for every name not found or connection lost
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # ranks set their own; silences advice among themselves

# --nproc-per-node gpu   one process a GPU (PROCESSES=n elsewhere)
# --max-restarts         when a rank dies, all start again from the newest checkpoint; a host that comes back rejoins
# --rdzv-id              tells this run from another one at the same port
# --rdzv-conf            join_timeout: seconds to wait for the other hosts; read_timeout: for one answer of the leader
exec torchrun \
  --nnodes "${NODES:-2}" \
  --nproc-per-node "${PROCESSES:-gpu}" \
  --max-restarts "${MAX_RESTARTS:-3}" \
  --rdzv-id mindllm \
  --rdzv-backend c10d \
  --rdzv-endpoint "$leader" \
  --rdzv-conf "is_host=$is_host,join_timeout=${JOIN_TIMEOUT:-600},read_timeout=30" \
  --local-addr "$address" \
  tools/pretrain.py "$@"
