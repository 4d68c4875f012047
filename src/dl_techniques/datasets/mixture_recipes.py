"""Named mixtures: which sources, and the share of each in the answer tokens."""

from collections.abc import Mapping
from typing import Any


def flatten_shares(nested: Mapping[str, Any]) -> dict[str, float]:
    """Flattens groups of sources: a group's share times the shares inside it.

    Args:
        nested: name -> share of a source, or name -> (share, {...}) of a group, to any depth.
            Shares are relative within their dict, whatever their sum.

    Returns:
        Source -> share; all shares sum to 1.

    Raises:
        ValueError: a source occurs twice, a group is empty, or a share is not a number >= 0.
    """
    shares: dict[str, float] = {}
    paths: dict[str, str] = {}
    _flatten(nested, 1.0, "", shares, paths)
    return shares


def _flatten(nested: Mapping, weight: float, path: str, shares: dict, paths: dict):
    if not isinstance(nested, Mapping):
        raise ValueError(
            f"Expected a dict of shares, got {nested!r}; a group is a (share, {{name: share}})."
        )
    entries = {
        name: tuple(entry) if isinstance(entry, (list, tuple)) else (entry, None)
        for name, entry in nested.items()
    }
    for name, entry in entries.items():
        if len(entry) != 2:
            raise ValueError(
                f"'{path}{name}' is {entry}; expected a share, or (share, {{...}}) for a group."
            )
        check_share(f"{path}{name}", entry[0])
    total = sum(share for share, _ in entries.values())
    if not total > 0:
        raise ValueError(f"The shares {f'in {path!r} ' if path else ''}sum to {total}: give one.")
    for name, (share, inner) in entries.items():
        part = weight * share / total
        if inner is not None:
            _flatten(inner, part, f"{path}{name}/", shares, paths)
        elif name in shares:
            raise ValueError(
                f"Source '{name}' occurs twice, as '{paths[name]}' and '{path}{name}': its samples "
                "would be read twice. Give it one share."
            )
        else:
            shares[name], paths[name] = part, f"{path}{name}"


def check_share(name: str, share: Any):
    """Refuses what is no share.

    Raises:
        ValueError: the share is not a finite number >= 0; the message has the name.
    """
    number = isinstance(share, (int, float)) and not isinstance(share, bool)
    if not number or not 0.0 <= share < float("inf"):
        raise ValueError(f"The share of '{name}' must be a finite number >= 0, got {share!r}.")


_VISION_SFT_IMAGES = {
    "llava_instruct_150k": 0.45,
    "a-okvqa": 0.05,
    "vqav2": 0.15,
    "okvqa": 0.05,
    "textvqa": 0.10,
    "stvqa": 0.02,
    "docvqa": 0.03,
    "chartqa": 0.10,
}

MIXTURES: dict[str, dict[str, float]] = {
    "vision_pretrain": {"coco_captions": 0.10, "laion_filtered": 0.90},
    "vision_sft": {**_VISION_SFT_IMAGES, "smoltalk": 0.05},
    "vision_sft_minimal": {
        "llava_instruct_150k": 0.50,
        "vqav2": 0.20,
        "textvqa": 0.12,
        "chartqa": 0.10,
        "smoltalk": 0.08,
    },
    "vision_sft_premium": {
        "sharegpt4v": 0.30,
        "llava_instruct_150k": 0.20,
        "vqav2": 0.20,
        "textvqa": 0.12,
        "chartqa": 0.10,
        "smoltalk": 0.08,
    },
    "nvlm": flatten_shares(
        {"multimodal": (0.60, _VISION_SFT_IMAGES), "text": (0.40, {"smoltalk": 1.0})}
    ),
}


def check_recipe(name: str) -> dict[str, float]:
    """Returns the shares of a named mixture.

    Raises:
        ValueError: there is no such mixture.
    """
    if name not in MIXTURES:
        raise ValueError(f"Unknown mixture {name!r}: expected one of {sorted(MIXTURES)}.")
    return dict(MIXTURES[name])


def parse_shares(text: str) -> dict[str, float]:
    """Reads the shares that a command line gives.

    Args:
        text: the name of a mixture, or shares such as "vqa=0.7,text=0.3", of any sum.

    Raises:
        ValueError: neither of these, a source that occurs twice, or a share that is not a finite
            number >= 0.
    """
    if "=" not in text:
        if text not in MIXTURES:
            raise ValueError(
                f"Unknown mixture {text!r}: expected one of {sorted(MIXTURES)}, or shares such as "
                "'vqa=0.7,text=0.3'."
            )
        return dict(MIXTURES[text])
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        try:
            share = float(number)
        except ValueError:
            name = ""
        if not name:
            raise ValueError(
                f"{part.strip()!r} in the mixture {text!r} is no share; expected NAME=NUMBER, as "
                "in 'vqa=0.7,text=0.3'."
            )
        check_share(name, share)
        if name in shares:
            raise ValueError(f"Source '{name}' occurs twice in the mixture {text!r}.")
        shares[name] = share
    return shares
