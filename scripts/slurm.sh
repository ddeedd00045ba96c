#!/bin/bash
# Trains on the nodes of a SLURM job, one task for each GPU. Two minutes before its time is over it writes a checkpoint and
# goes back into the queue; a node that fails puts it there, too. It then goes on where it was, in the same run folder.
#
#   sbatch --job-name digits scripts/slurm.sh --config configs/experiment/digits_cnn.yaml
#
# What your cluster wants otherwise (partition, account, sizes) stands here or before scripts/slurm.sh.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
set -euo pipefail

# Under sbatch this file is a copy elsewhere: the project is where the command was given.
cd "${SLURM_SUBMIT_DIR:-.}"
read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_PORT=$((20000 + SLURM_JOB_ID % 15000))
export MASTER_ADDR MASTER_PORT

# One failed task ends all at once. The run's folder is the job's, whose number stays when it is requeued.
exec srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m src.train \
  --config configs/trainer/multi_node.yaml \
  "$@" \
  --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" \
  --run_dir "logs/$SLURM_JOB_NAME/$SLURM_JOB_ID"
