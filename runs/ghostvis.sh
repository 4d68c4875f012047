#!/usr/bin/env bash
# GhostVis from text to rewards: base, alignment, fine-tuning, GRPO.
#
#     runs/ghostvis.sh DATA TOKENIZER       the 1.5B model; DATA holds the sources of the mixtures
#                                           and, for GRPO, `questions`
#     runs/ghostvis.sh --tiny [DATA]        a model of 3M parameters on 2 CPU cores
#
# Every stage leaves a folder that the next one starts from. KERAS_BACKEND chooses the backend.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
if [ "${1:-}" = --tiny ]; then
  flags=(--tiny)
  [ $# -lt 2 ] || flags+=(--data "$2")
  $python train/ghostvis_base.py "${flags[@]}" --output runs/tiny/base_checkpoints
  $python train/ghostvis_align.py "${flags[@]}" --source runs/tiny/base_checkpoints \
    --output runs/tiny/mid_checkpoints
  $python train/ghostvis_sft.py "${flags[@]}" --source runs/tiny/mid_checkpoints \
    --output runs/tiny/chatsft_checkpoints
  $python train/ghostvis_grpo.py --source runs/tiny/chatsft_checkpoints \
    --data runs/tiny_sources/questions/train.jsonl \
    --held_out runs/tiny_sources/held_out/questions.jsonl \
    --num_steps 50 --device_batch_size 16 --llm_lr 3e-5 --output runs/tiny/chatrl_checkpoints
  exit
fi
data=$1 tokenizer=$2
$python train/ghostvis_base.py --data "$data" --tokenizer "$tokenizer" --depth 20
$python train/ghostvis_align.py --data "$data" --source base_checkpoints
$python train/ghostvis_sft.py --data "$data" --source mid_checkpoints
$python train/ghostvis_grpo.py --data "$data/questions" --source chatsft_checkpoints
