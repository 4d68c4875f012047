"""Settings of the smallest whole run."""

from dl_techniques.training.recipes import get_recipe


def micro_config(folder, **changes):
    """Return settings of a run of some steps that writes into `folder`."""
    config = get_recipe("demo")
    config["vision_config"] |= {"embed_dim": 16, "depth": 1, "num_heads": 2}
    config["language_config"] |= {"hidden_dim": 16, "num_layers": 1, "mlp_dim": 32}
    config["projection_config"] |= {"input_dim": 16, "output_dim": 16}
    small = {"pictures": 24, "picture_size": 48, "vocab_size": 320, "max_text_length": 256}
    small |= {"held_out_questions": 16, "batch_size": 32, "max_turns": 1, "epochs": 1}
    return {**config, **small, "output_dir": str(folder), **changes}
