"""Checkpoints of public models, their parts, and our own: read, checked, converted, written."""

from dl_techniques.checkpoints.exporting import (
    export_decoder,
    export_vision_encoder,
    save_weights,
)
from dl_techniques.checkpoints.family_exporting import export_internvl, export_llava
from dl_techniques.checkpoints.key_maps import KEY_MAPS
from dl_techniques.checkpoints.loading import load_weights
from dl_techniques.checkpoints.model_exporting import export_nanovlm, export_smolvlm
from dl_techniques.checkpoints.safetensors_io import Checkpoint

__all__ = [
    "KEY_MAPS",
    "Checkpoint",
    "export_decoder",
    "export_internvl",
    "export_llava",
    "export_nanovlm",
    "export_smolvlm",
    "export_vision_encoder",
    "load_weights",
    "save_weights",
]
