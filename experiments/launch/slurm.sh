#!/bin/bash
# A run on several nodes under Slurm, one process each:
#   sbatch --nodes=4 --gpus-per-node=8 experiments/launch/slurm.sh --config=coco_up_down --workdir=/shared/runs/up_down
#
# Two minutes before the time is up, or when the job is preempted, all processes save the same step and end with status
# 75; the job then goes back to the queue and goes on from that step. Options are those of `capjax train`.
#SBATCH --job-name=capjax
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=capjax-%j.log
set -u

srun --kill-on-bad-exit=0 capjax train "$@" --distributed
status=$?
if [ "$status" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
