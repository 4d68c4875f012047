"""All named configurations of all families: one place that knows which class a name belongs to."""

import copy

from dl_techniques.models.ghost_vis import GHOSTVIS_CONFIGS, GhostVis
from dl_techniques.models.nano_vlm import NANOVLM_CONFIGS, NanoVLM
from dl_techniques.models.nvlm import NVLM
from dl_techniques.models.nvlm_configs import NVLM_CONFIGS
from dl_techniques.models.vision_language_model import VisionLanguageModel

FAMILIES: dict[str, type[VisionLanguageModel]] = {
    family.__name__: family for family in (NanoVLM, GhostVis, NVLM)
}
_CONFIGS = {NanoVLM: NANOVLM_CONFIGS, GhostVis: GHOSTVIS_CONFIGS, NVLM: NVLM_CONFIGS}

# The name of a configuration -> the class of its family.
MODEL_CONFIGS: dict[str, type[VisionLanguageModel]] = {
    name: family for family, configs in _CONFIGS.items() for name in configs
}
MODEL_NAMES: tuple[str, ...] = tuple(MODEL_CONFIGS)
# The name of a configuration -> how many weights it has.
TOTAL_PARAMS: dict[str, int] = {
    name: config["total_params"]
    for configs in _CONFIGS.values()
    for name, config in configs.items()
}


def model_class(name: str) -> type[VisionLanguageModel]:
    """Return the class of a named configuration.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in MODEL_CONFIGS:
        raise ValueError(f"Unknown model {name!r}: choose from {', '.join(MODEL_NAMES)}.")
    return MODEL_CONFIGS[name]


def model_arguments(name: str) -> dict:
    """Return a copy of the constructor's arguments that a name stands for.

    Raises:
        ValueError: if the name is unknown.
    """
    return copy.deepcopy(model_class(name).presets[name])


def create_model(name: str, **changes) -> VisionLanguageModel:
    """Return a new model with random weights.

    Args:
        name: One of `MODEL_NAMES`.
        **changes: Constructor arguments that replace the configuration's.

    Raises:
        ValueError: if the name is unknown.
    """
    return model_class(name).create(name, **changes)


def family_of(config: dict) -> type[VisionLanguageModel]:
    """Return the class that a dict of constructor arguments is meant for.

    Args:
        config: May name it under "family" (as the settings of a run do); else it is told by the
            arguments that only one family has.

    Raises:
        ValueError: if there is no such family.
    """
    name = config.get("family")
    if name is None:
        is_ghostvis = "projector_config" in config
        name = "NVLM" if "architecture" in config else "GhostVis" if is_ghostvis else "NanoVLM"
    if name not in FAMILIES:
        raise ValueError(f"Unknown family {name!r}: choose from {', '.join(FAMILIES)}.")
    return FAMILIES[name]
