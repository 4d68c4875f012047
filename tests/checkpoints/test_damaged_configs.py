"""Configs with junk in them: an error that is a ValueError, or a config; never a crash."""

import copy
import random

import pytest
from references import LATER, LLAMA3, NANOVLM_CONFIG, llama, qwen2, siglip, smolvlm

from dl_techniques.checkpoints.configs import (
    language_config_from_llama,
    vision_config_from_siglip,
)
from dl_techniques.checkpoints.nanovlm_config import config_from_nanovlm
from dl_techniques.checkpoints.smolvlm_config import config_from_smolvlm

JUNK = [
    *(None, True, False, -1, 0, 1.5, -2.0, float("nan"), float("inf"), 2**31, 10**400),
    *("", "x", [], [1], [None], {}, {"a": 1}, {"rope_type": [1]}),
]
READERS = {
    "llama": (language_config_from_llama, lambda: llama(rope=LLAMA3).config.to_dict()),
    "qwen2": (language_config_from_llama, lambda: qwen2().config.to_dict()),
    "siglip": (vision_config_from_siglip, lambda: siglip().config.to_dict()),
    "smolvlm": (config_from_smolvlm, lambda: smolvlm().config.to_dict()),
    "nanovlm": (config_from_nanovlm, lambda: {**NANOVLM_CONFIG, **LATER}),
}


def objects_in(config):
    """Yield a JSON object and those inside it."""
    yield config
    for value in config.values():
        if isinstance(value, dict):
            yield from objects_in(value)


@pytest.mark.parametrize("name", list(READERS))
def test_junk_in_random_fields(name):
    read, make = READERS[name]
    config, generator, refused = make(), random.Random(0), 0
    assert read(config)
    for _ in range(400):
        damaged = copy.deepcopy(config)
        holder = generator.choice([o for o in objects_in(damaged) if o])
        field = generator.choice(sorted(holder))
        holder[field] = copy.deepcopy(generator.choice(JUNK))
        try:
            read(damaged)
        except ValueError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("name", list(READERS))
@pytest.mark.parametrize("junk", [None, 3, "x", [], [{}], {"model_type": []}])
def test_junk_in_place_of_the_whole(name, junk):
    with pytest.raises(ValueError):
        READERS[name][0](junk)
