#!/usr/bin/env bash
# NVLM: the paper's two stages.
#
#     runs/nvlm.sh ARCHITECTURE DATA TOKENIZER       decoder, cross_attention or hybrid; 72B
#     runs/nvlm.sh ARCHITECTURE --tiny [DATA]        a model of 3M parameters on 2 CPU cores
#
# KERAS_BACKEND chooses the backend.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
architecture=$1
if [ "${2:-}" = --tiny ]; then
  flags=(--tiny)
  [ $# -lt 3 ] || flags+=(--data "$3")
  exec $python train/nvlm.py --architecture "$architecture" "${flags[@]}"
fi
exec $python train/nvlm.py --architecture "$architecture" --data "$2" --tokenizer "$3" \
  --layout fsdp
