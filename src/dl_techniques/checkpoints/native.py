"""Our own format: weights under our own paths, and the model's arguments as they are."""

import json
from typing import Any

import dl_techniques
from dl_techniques.checkpoints.config_fields import Fields
from dl_techniques.checkpoints.key_map import KeyMap

MODEL_TYPE = "dl_techniques"
NATIVE = KeyMap(MODEL_TYPE, rules=())


def config_from_native(config: dict) -> dict:
    """Return the constructor's arguments of a model for the config.json of our format.

    Raises:
        ValueError: if there are none.
    """
    arguments = Fields(config, "config.json").get("arguments")
    if not isinstance(arguments, dict) or not arguments:
        raise ValueError("config.json: 'arguments' must be an object: the model's arguments.")
    return arguments


def native_config(model) -> dict[str, Any]:
    """Return the config.json of a model in our format."""
    return {
        "model_type": MODEL_TYPE,
        "model_class": type(model).__name__,
        "version": dl_techniques.__version__,
        "arguments": model.arguments(),
        "has_processor": model.processor is not None,
        "eos_token_id": list(model.stop_ids),
        "training_data": model.training_data,
        "results": _plain(model.results),
    }


def _plain(results: dict | None) -> dict | None:
    """Return results with Python's numbers for NumPy's.

    Raises:
        ValueError: if they are no dict, or hold what JSON cannot.
    """
    if results is not None and not isinstance(results, dict):
        raise ValueError(f"model.results must be a dict of scores or None, got {results!r}.")
    try:
        return json.loads(json.dumps(results, default=float))
    except (TypeError, ValueError) as error:
        raise ValueError(f"model.results cannot be written as JSON: {error}") from error
