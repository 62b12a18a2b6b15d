#!/bin/bash
# A run on all hosts of a TPU slice, started from anywhere that gcloud is set up:
#   TPU=my-slice ZONE=us-west4-a experiments/launch/tpu_pod.sh --config=coco_up_down --workdir=/mnt/shared/runs/up_down
#
# Before, once:
#   gcloud compute tpus tpu-vm create "$TPU" --zone="$ZONE" --accelerator-type=v5litepod-32 --version=v2-alpha-tpuv5-lite
#   gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
#     --command='git clone URL capjax && cd capjax && python3 -m venv .venv && .venv/bin/pip install ".[tpu]"'
# and a file system that all hosts mount at the same place (Filestore, or a bucket with gcsfuse).
#
# A slice that is told to go away sends SIGTERM: the run saves and ends with status 75, and is started again here.
# Options are those of `capjax train`; on TPUs add --config.train.dtype=bfloat16 --config.encoder.dtype=bfloat16.
set -u

command="cd capjax && .venv/bin/capjax train $(printf '%q ' "$@") --distributed"
while true; do
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$command"
  status=$?
  [ "$status" -eq 75 ] || exit "$status"
  sleep 30
done
