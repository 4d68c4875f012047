"""NVLM's orders of learning: the guide's three stages and the paper's two, as lists of settings.

Reference: https://arxiv.org/abs/2409.11402, tables 10 and 11.
"""

CROSS_ATTENTION = r"language_decoder/block_\d+/cross_attention"
MODELS = {"decoder": "nvlm_d_72b", "cross_attention": "nvlm_x_72b", "hybrid": "nvlm_h_72b"}
TINY_MODELS = {"decoder": "nvlm_mini_d", "cross_attention": "nvlm_mini_x", "hybrid": "nvlm_mini_h"}

# architecture -> pretraining, then fine-tuning: rows, peak and last learning rate, steps of
# warm-up, second beta of Adam, weight decay, clipping, tokens of the decoder, tiles, steps.
_PAPER = {
    "decoder": (
        (2048, 1e-4, 2.5e-5, 500, 0.95, 0.1, 10.0, 512, 1, 20000),
        (128, 2e-6, 2.5e-7, 1000, 0.98, 0.1, 10.0, 3200, 7, 40000),
    ),
    "cross_attention": (
        (2048, 1e-4, 1e-5, 1000, 0.95, 0.05, 1.0, 512, 1, 20000),
        (256, 1e-5, 1e-7, 500, 0.98, 0.05, 1.0, 1024, 7, 20000),
    ),
    "hybrid": (
        (2048, 1e-4, 1e-5, 1000, 0.98, 0.05, 1.0, 512, 7, 20000),
        (256, 1e-5, 1e-7, 1000, 0.98, 0.05, 1.0, 1280, 7, 40000),
    ),
}
_ROWS_AT_A_TIME = 16


def connector_rates(architecture: str, rate: float) -> dict:
    """Return the learning rates of all that lies between encoder and text decoder.

    The projection in front of X's cross-attention learns with it: frozen at random, it would hide
    the images.
    """
    rates = {"projection": rate}
    return rates if architecture == "decoder" else {**rates, CROSS_ATTENTION: rate}


def paper_stages(architecture: str) -> list[dict]:
    """Return the paper's two stages: the connector alone, then the decoder with it.

    The encoder is frozen in both. Values are those of the 72B models.

    Args:
        architecture: "decoder", "cross_attention" or "hybrid".
    """
    names = ("pretrain", "sft")
    stages = []
    for name, values in zip(names, _PAPER[architecture], strict=True):
        rows, peak, last, warmup, beta, decay, clip, length, tiles, steps = values
        if name == "pretrain":
            rates = connector_rates(architecture, peak)
        else:
            rates = {"projection": peak, "language": peak}
        stages.append(
            {
                "name": name,
                "mixture": "vision_pretrain" if name == "pretrain" else "nvlm",
                "steps": steps,
                "batch_size": _ROWS_AT_A_TIME,
                "accumulation_steps": rows // _ROWS_AT_A_TIME,
                "max_text_length": length,
                "max_tiles": tiles,
                "learning_rates": rates,
                "optimizer": {"type": "adamw", "beta_2": beta, "weight_decay": decay},
                "clipnorm": clip,
                "warmup_share": warmup / steps,
                "alpha": last / peak,
            }
        )
    return stages


def guide_stages(architecture: str, steps: int = 20000) -> list[dict]:
    """Return the guide's three stages: the encoder by contrast, the connector, all together.

    Args:
        architecture: "decoder", "cross_attention" or "hybrid".
        steps: Of each stage.
    """
    return [
        {
            "name": "contrast",
            "mixture": "vision_pretrain",
            "steps": steps,
            "batch_size": 64,
            "accumulation_steps": 1,
            "max_documents": 1,
            "learning_rates": {"vision": 1e-5, "projection": 5e-5},
            "objective": {"lambda_vlm": 0.0, "lambda_contrast": 1.0},
        },
        {
            "name": "align",
            "mixture": "vision_pretrain",
            "steps": steps,
            "learning_rates": connector_rates(architecture, 5e-5),
        },
        {
            "name": "end_to_end",
            "mixture": "nvlm",
            "steps": steps,
            "learning_rates": {"vision": 1e-5, "projection": 5e-5, "language": 1e-4},
            "objective": {"lambda_text": 1.0},
        },
    ]
