#!/bin/bash
# A training on machines of SLURM that may be taken away: sbatch deploy/slurm.sh rt_detr/r50_coco_72e /data/coco /shared/runs/r50
#
# Before the time is up SLURM sends SIGUSR1 to the tasks; they end at the next step with a checkpoint and exit code 138,
# and the job queues itself again. A preempted job gets SIGTERM, ends the same way, and SLURM queues it again. The same
# command then goes on: --ckpt-path auto. The run folder must be on a disk that all machines see.
#SBATCH --job-name=detr-zoo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -u
recipe=$1 data=$2 folder=$3

export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
# a machine with several networks: export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# tasks and machines are found in SLURM's variables; --wait ends what is left when one task has failed at its start
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --wait=600 \
    zoo fit --config "$recipe" --data.root "$data" --output "$folder" --ckpt-path auto
code=$?
if [ $code -eq 138 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
