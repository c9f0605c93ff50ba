#!/usr/bin/env bash
# A task of slurm.sh: runs the command that it is given, and ends with its exit code; where that has failed, with 100
# more. srun ends with the highest code of its tasks, and one that fails ends the others with 75 (saved).
set -u

"$@" &
child=$!
# Slurm tells this process alone or, by how it is set up, the command as well.
trap 'told=1; kill -TERM "$child" 2>/dev/null' INT TERM
while
  told=
  wait "$child"
  code=$?
  [ -n "$told" ] # it was the signal that ended the waiting
do :; done
if [ "$code" -gt 0 ] && [ "$code" -lt 75 ]; then
  code=$((code + 100))
fi
exit "$code"
