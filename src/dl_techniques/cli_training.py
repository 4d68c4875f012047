"""The command `train`: flags that change a recipe's settings."""

import inspect
import json
from collections.abc import Callable

_SWITCHES = ("help", "resume", "restart")


def train_command(arguments: list[str], get_config: Callable[[str], dict]) -> None:
    """Train with flags, among them `--KEY VALUE` for any setting.

    `--recipe NAME` or `--config FILE` (the `config.json` of a run) gives the settings; `--resume`
    goes on where the run in `--output_dir` stopped; `--restart` begins anew there; `--help` shows
    the settings and trains nothing.

    Args:
        arguments: The command line; `--KEY=VALUE` will do too. Values are JSON where they read as
            JSON of a type that the setting may have besides text; else text.
        get_config: Recipe name -> settings.

    Raises:
        ValueError: for a wrong flag or setting.
    """
    from dl_techniques.checkpoints.json_files import read_json
    from dl_techniques.training.recipes import default_config, setting_types
    from dl_techniques.training.run import run_training

    switches, changes = _read_flags(arguments)
    file, recipe = changes.pop("config", None), changes.pop("recipe", "default")
    config = get_config(recipe) if file is None else read_json(file)
    known = default_config()
    wrong = sorted(set(changes) - set(known))
    if wrong:
        raise ValueError(f"Unknown settings {wrong}; there are: {', '.join(known)}.")
    for key, text in changes.items():
        config[key] = _value(text, setting_types(key))
    if switches.pop("help", False):
        print(_help(config, f"recipe {recipe}" if file is None else file))
        return
    run_training(config, **switches)


def _read_flags(arguments):
    """Return the switches that are on, and the texts of the other flags."""
    switches, changes, rest = {}, {}, list(arguments)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        name = flag.removeprefix("--")
        if flag.startswith("--") and name in _SWITCHES and not equals:
            switches[name] = True
            continue
        if not flag.startswith("--") or not (equals or rest):
            raise ValueError(f"Expected --KEY VALUE, got {flag!r}.")
        changes[name.replace("-", "_")] = value if equals else rest.pop(0)
    return switches, changes


def _value(text, types):
    if types == (str,):
        return text
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return text if str in types and not isinstance(value, types) else value


def _help(config, source):
    from dl_techniques.training.recipes import RECIPES, default_config

    values = (
        f"  --{key} {value if isinstance(value, str) else json.dumps(value)}"
        for key, value in config.items()
    )
    return "\n".join(
        (
            "Flags: [--recipe NAME | --config FILE] [--resume | --restart] [--KEY VALUE ...]",
            f"Recipes: {', '.join(RECIPES)}",
            "",
            inspect.getdoc(default_config),
            "",
            f"The settings of {source}, each a flag; values that are no text are JSON:",
            *values,
        )
    )
