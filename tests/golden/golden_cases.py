"""Small outputs of models with deterministic weights, the same on every backend.

`PYTHONPATH=tests python tests/golden/golden_cases.py` writes them anew: only after a change that
is meant to change numbers.
"""

import pathlib

import numpy as np
from tiny_models import (
    fill,
    logits,
    mixed_batch,
    random_ids,
    random_images,
    run,
    text_batch,
    tiny_nanovlm,
)
from tiny_nvlm import batch, tiny_nvlm

from dl_techniques.layers import VisionResampler, VisionTransformer
from dl_techniques.models.language_decoder import LanguageDecoder

FILE = pathlib.Path(__file__).with_name("golden.npz")
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def _decoder(**kwargs):
    sizes = {"hidden_dim": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 24}
    layer = LanguageDecoder(20, **sizes, **kwargs)
    layer.build((None, None))
    return run(fill(layer), random_ids(2, 10) % 20)


def _vision():
    layer = VisionTransformer(16, 4, 8, 2, 2, class_token=True, activation="quick_gelu")
    layer.build((None, 16, 16, 3))
    # Two sizes: the table of positions as it is, and interpolated.
    images = random_images(2)
    return np.concatenate([run(fill(layer), images), run(layer, images[:, :8])], axis=1)


def _resampler(mode):
    layer = VisionResampler(4, mode, num_heads=2)
    layer.build((None, None, 8))
    return run(fill(layer), random_images(2).reshape(2, -1, 8)[:, :81])


CASES = {
    "nvlm_decoder": lambda: logits(tiny_nvlm("decoder"), batch("decoder")),
    "nvlm_cross_attention": lambda: logits(tiny_nvlm("cross_attention"), batch("cross_attention")),
    "nvlm_hybrid": lambda: logits(tiny_nvlm("hybrid", bidirectional_images=True), batch("hybrid")),
    "resampler_perceiver": lambda: _resampler("perceiver"),
    "resampler_avgpool": lambda: _resampler("avgpool"),
    "nanovlm_placeholder": lambda: logits(tiny_nanovlm(), mixed_batch()),
    "nanovlm_bidirectional": lambda: logits(tiny_nanovlm(bidirectional_images=True), mixed_batch()),
    "nanovlm_prefix": lambda: logits(tiny_nanovlm("prefix"), text_batch()),
    "decoder_qwen2": lambda: _decoder(use_qkv_bias=True, rope_theta=1e6),
    "decoder_qk_norm": lambda: _decoder(qk_norm=True, head_dim=6),
    "decoder_llama3": lambda: _decoder(rope_scaling=LLAMA3, tie_embeddings=False),
    "vision_class_token": _vision,
}

if __name__ == "__main__":
    np.savez_compressed(FILE, **{name: case() for name, case in CASES.items()})
