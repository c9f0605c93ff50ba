#!/usr/bin/env bash
# A run inside Slurm, one process a GPU; a job that is told to stop is put back into the queue.
#
#   sbatch --nodes=2 scripts/slurm.sh --config=configs/tinybert_general.py --workdir=/shared/general
#
# From the folder of the checkout, which all nodes see, with its environment in .venv. DRY_RUN=1 says
# the command and runs nothing.
#SBATCH --job-name=jaxbert
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
set -uo pipefail

if [ $# -eq 0 ]; then
  echo "give train.py's flags: --config=RECIPE --workdir=DIR, DIR where all nodes see it" >&2
  exit 2
fi
# JAX finds the group by Slurm's own variables; Slurm sends SIGTERM to every process.
command=(srun --kill-on-bad-exit=0 .venv/bin/python train.py --distributed "$@")
printf '$'
printf ' %q' "${command[@]}"
printf '\n'
[ -n "${DRY_RUN:-}" ] && exit 0

"${command[@]}"
code=$?
if [ "$code" -eq 75 ] && [ -n "${SLURM_JOB_ID:-}" ]; then # saved: the same command goes on
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
