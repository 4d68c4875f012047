"""Checks shared by the builders: known types, known keys, numbers in range."""

from collections.abc import Mapping


def check_keys(config: Mapping, types: Mapping, what: str) -> tuple:
    """Return `types[config["type"]]`, a (keys, ...) tuple, after checking the config's keys.

    Raises:
        ValueError: naming the unknown type or key and the valid ones.
    """
    if not isinstance(config, Mapping) or config.get("type") not in types:
        found = config.get("type") if isinstance(config, Mapping) else config
        raise ValueError(
            f"Unknown {what} type {found!r}; set 'type' in the config to one of {sorted(types)}."
        )
    entry = types[config["type"]]
    unknown = sorted(set(config) - {"type", *entry[0]})
    if unknown:
        raise ValueError(
            f"Unknown keys {unknown} for {what} {config['type']!r}; "
            f"valid are 'type' and {sorted(entry[0])}."
        )
    return entry


def number(
    config: Mapping,
    key: str,
    default: float | None = None,
    at_least: float | None = None,
    above: float | None = None,
    whole: bool = False,
) -> float | int:
    """Return `config[key]` as a float (an int where `whole`), or the default.

    Raises:
        ValueError: no number, a missing one without a default, or one out of range.
    """
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or (whole and value % 1):
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"{key!r} must be {kind} in {dict(config)}, got {value!r}.")
    low = (at_least is not None and not value >= at_least) or (
        above is not None and not value > above
    )
    if low:
        bound = f">= {at_least}" if at_least is not None else f"> {above}"
        raise ValueError(f"{key!r} must be {bound}, got {value!r}.")
    return int(value) if whole else float(value)
