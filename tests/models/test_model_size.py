import pytest
from tiny_models import tiny_nanovlm

from dl_techniques.models.model_size import without_weights
from dl_techniques.models.nano_vlm import (
    NANOVLM_CONFIGS,
    analyze_model_size,
    create_nanovlm,
    create_nanovlm_222m,
)

# vision, projection, language, total
PARAMETERS = {
    "nanovlm_mini": (11_018_112, 590_976, 26_448_768, 38_057_856),
    "nanovlm_base": (25_714_176, 1_050_112, 49_947_136, 76_711_424),
    "nanovlm_222m": (85_797_120, 1_769_472, 134_515_008, 222_081_600),
    "nanovlm_450m": (85_843_200, 2_949_120, 361_822_080, 450_614_400),
    "nanovlm_230m_8k": (86_433_024, 7_077_888, 134_553_024, 228_063_936),
    "nanovlm_460m_8k": (86_433_024, 11_796_480, 361_884_480, 460_113_984),
}


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_exact_parameters(name):
    size = analyze_model_size(name)
    assert tuple(row.parameters for row in size.rows) == PARAMETERS[name]
    assert NANOVLM_CONFIGS[name]["total_params"] == PARAMETERS[name][-1]


def test_every_configuration_is_counted():
    assert set(NANOVLM_CONFIGS) == set(PARAMETERS)


def test_mini_for_real():
    model = create_nanovlm("nanovlm_mini")
    assert model.count_params() == 38_057_856
    assert str(analyze_model_size(model)) == str(analyze_model_size("nanovlm_mini"))


def test_table_of_222m():
    size = analyze_model_size()
    assert size["vision_encoder"].share == pytest.approx(85_797_120 / 222_081_600)
    assert sum(row.share for row in size.rows[:-1]) == pytest.approx(1.0)
    assert size["total"].bytes_float32 == 888_326_400
    assert size["total"].bytes_bfloat16 == 444_163_200
    lines = str(size).splitlines()
    assert lines[1].split() == ["vision_encoder", "85,797,120", "38.63%", "343.2", "171.6"]
    assert lines[-1].split() == ["total", "222,081,600", "100.00%", "888.3", "444.2"]


def test_222m_is_the_first_release():
    model = without_weights(create_nanovlm_222m)
    assert (model.fusion, model.image_token_id) == ("prefix", None)
    assert model.tokens_per_image == 49
    later = without_weights(lambda: create_nanovlm("nanovlm_460m_8k"))
    assert (later.fusion, later.image_token_id, later.tokens_per_image) == (
        "placeholder",
        49152,
        64,
    )


def test_models_without_weights_leave_nothing_behind():
    # A deferred weight that outlived its scope would be filled in by the next model.
    without_weights(lambda: tiny_nanovlm_unfilled())
    model = tiny_nanovlm()
    assert all(v.value is not None for v in model.variables)


def tiny_nanovlm_unfilled():
    from tiny_models import tiny_config

    from dl_techniques.models.nano_vlm import NanoVLM

    return NanoVLM(**tiny_config())


def test_unknown_name():
    with pytest.raises(ValueError, match="Unknown model 'nanovlm_1b': choose from .*nanovlm_222m"):
        create_nanovlm("nanovlm_1b")


def test_changes_replace_the_configuration_but_not_the_table():
    before = repr(NANOVLM_CONFIGS)
    model = without_weights(lambda: create_nanovlm("nanovlm_mini", vocab_size=100))
    model.language_config["hidden_dim"] = 1
    assert model.vocab_size == 100
    assert repr(NANOVLM_CONFIGS) == before
