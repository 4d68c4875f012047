"""The default loss, schedule and optimizers of NanoVLM training."""

from dl_techniques.losses.nanovlm_loss import NanoVLMLoss
from dl_techniques.optimization import (
    ComponentOptimizer,
    learning_rate_schedule_builder,
    optimizer_builder,
)

SCHEDULE = {
    "type": "cosine_decay",
    "warmup_steps": 1000,
    "warmup_start_lr": 1e-8,
    "learning_rate": 1e-4,
    "decay_steps": 50000,
    "alpha": 1e-4,
}
OPTIMIZER = {"type": "adamw", "beta_1": 0.9, "beta_2": 0.999, "gradient_clipping_by_norm": 1.0}
COMPONENTS = {
    "vision": "vision_encoder",
    "language": "language_decoder",
    "projection": "modality_projection",
}


def create_training_setup() -> dict:
    """Return `{"optimizer", "lr_schedule", "loss_fn"}` for one learning rate over all parts."""
    schedule = learning_rate_schedule_builder(SCHEDULE)
    return {
        "optimizer": optimizer_builder(OPTIMIZER, schedule),
        "lr_schedule": schedule,
        "loss_fn": NanoVLMLoss(label_smoothing=0.1),
    }


def setup_different_learning_rates(model) -> dict:
    """Return `{vision,language,projection}_{optimizer,params}`: AdamW 1e-5, 1e-5 and 1e-4.

    Args:
        model: A model with `vision_encoder`, `language_decoder` and `modality_projection`.
    """
    config = {k: v for k, v in OPTIMIZER.items() if k != "gradient_clipping_by_norm"}
    rates = {"vision": 1e-5, "language": 1e-5, "projection": 1e-4}
    setup = {}
    for name, attribute in COMPONENTS.items():
        setup[f"{name}_optimizer"] = optimizer_builder(config, rates[name])
        setup[f"{name}_params"] = getattr(model, attribute).trainable_variables
    return setup


def component_optimizer(
    optimizers: dict, global_clipnorm: float | None = 1.0, accumulation_steps: int | None = 1
) -> ComponentOptimizer:
    """Return one optimizer over a NanoVLM: clipped by one norm, accumulated by tokens.

    Args:
        optimizers: "vision", "language" and "projection" -> a Keras optimizer each.
        global_clipnorm: The largest norm of all gradients together.
        accumulation_steps: Batches per update; see `ComponentOptimizer`.
    """
    components = {COMPONENTS[name]: optimizer for name, optimizer in optimizers.items()}
    return ComponentOptimizer(components, global_clipnorm, accumulation_steps)


def default_optimizer(model, accumulation_steps: int | None = 1) -> ComponentOptimizer:
    """Return the component optimizer with the rates of `setup_different_learning_rates`.

    Frozen components (`trainable = False`) have none.
    """
    setup = setup_different_learning_rates(model)
    return component_optimizer(
        {name: setup[f"{name}_optimizer"] for name in COMPONENTS if setup[f"{name}_params"]},
        accumulation_steps=accumulation_steps,
    )
