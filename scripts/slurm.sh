#!/usr/bin/env bash
# A run inside Slurm, one process a GPU; a job that is told to stop is put back into the queue.
#
#   sbatch --nodes=2 scripts/slurm.sh --config=configs/tinybert_general.py --workdir=/shared/general
#
# From the folder of the checkout, which all nodes see, with its environment in .venv. DRY_RUN=1 says
# the command and runs nothing; RESTARTS=N puts the job back at most N times (100).
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
# JAX finds the group by Slurm's own variables; Slurm sends SIGTERM to every task.
command=(srun --kill-on-bad-exit=0 .venv/bin/python scripts/task.py train.py --distributed "$@")
printf '$'
printf ' %q' "${command[@]}"
printf '\n'
[ -n "${DRY_RUN:-}" ] && exit 0

"${command[@]}"
code=$?
if [ "$code" -gt 100 ] && [ "$code" -lt 126 ]; then # as task.py has it; from 126 on they are signals
  code=$((code - 100))
fi
if [ "$code" -ne 0 ] && [ "$code" -ne 75 ]; then
  echo "the run ended with $code" >&2
elif [ "$code" -eq 75 ] && [ -n "${SLURM_JOB_ID:-}" ]; then # saved: the same command goes on
  if [ "${SLURM_RESTART_COUNT:-0}" -lt "${RESTARTS:-100}" ]; then
    scontrol requeue "$SLURM_JOB_ID"
  else
    echo "interrupted, and not put back into the queue after $SLURM_RESTART_COUNT times: RESTARTS=N allows more" >&2
  fi
fi
exit "$code"
