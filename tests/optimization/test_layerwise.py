import keras
import numpy as np
import pytest

from dl_techniques.layers.vision_transformer import VisionTransformer
from dl_techniques.models.language_decoder import LanguageDecoder
from dl_techniques.optimization import AdamW, ComponentOptimizer, layerwise_components

PATHS = [
    "vlm/vision/patch_embedding/kernel",
    "vlm/vision/block_0/norm/scale",
    "vlm/vision/block_1/norm/scale",
    "vlm/vision/block_10/kernel",
    "vlm/vision/norm/scale",
    "vlm/decoder/block_0/kernel",
]


def rates(*arguments, **options):
    """Entries with the plain rate in place of an optimizer."""
    return layerwise_components(*arguments, make_optimizer=lambda rate: rate, **options)


def test_rates_fall_from_the_highest_block_down():
    found = rates(PATHS, "vision", 1.0, 0.5)
    before, after = (p for p in found if "block" not in p)
    assert list(found) == [
        before,
        "vision/block_0",
        "vision/block_1",
        "vision/block_10",
        after,
    ]
    assert list(found.values()) == [0.5**11, 0.5**10, 0.5**9, 1.0, 1.0]
    assert all(rate == 3.0 for rate in rates(PATHS, "vision", 3.0, 1.0).values())


def test_frozen_parts_get_no_entry():
    assert rates(PATHS[2:4], "vision", 1.0, 0.5) == {
        "vision/block_1": 0.5**9,
        "vision/block_10": 1.0,
    }


def test_component_may_be_a_pattern():
    found = rates(PATHS, "(vision|text)", 1.0, 0.5)
    assert found["(?:(vision|text))/block_0"] == 0.5**10
    assert len(found) == 5


def test_real_components():
    vision = VisionTransformer(
        8, 4, 8, 2, 2, 2.0, class_token=True, use_pre_norm=True, name="vision_encoder"
    )
    vision.build((None, 8, 8, 3))
    decoder = LanguageDecoder(11, 8, 3, 2, 16, tie_embeddings=False, name="language_decoder")
    decoder.build((None, None))
    variables = [*vision.trainable_variables, *decoder.trainable_variables]
    paths = [v.path for v in variables]
    components = {
        name: layerwise_components(paths, name, rate, decay, AdamW)
        for name, rate, decay in (("vision_encoder", 1.0, 0.5), ("language_decoder", 2.0, 0.25))
    }
    optimizer = ComponentOptimizer(components["vision_encoder"] | components["language_decoder"])
    optimizer.build(variables)
    rate_of = {}
    for pattern, (trained, _) in optimizer.state_by_component().items():
        for variable in trained:
            rate_of[variable.path] = optimizer.learning_rates[pattern]
    assert set(rate_of) == set(paths)

    def rates_below(start):
        return {rate for path, rate in rate_of.items() if path.startswith(start)}

    assert rates_below("vision_encoder/patch_embedding") == {0.25}
    assert rates_below("vision_encoder/pre_norm") == {0.25}
    assert rates_below("vision_encoder/block_0/") == {0.5}
    assert rates_below("vision_encoder/block_1/") == {1.0}
    assert rates_below("vision_encoder/norm") == {1.0}
    assert rates_below("language_decoder/token_embedding/embeddings") == {2 / 64}
    assert rates_below("language_decoder/block_0/") == {2 / 16}
    assert rates_below("language_decoder/block_1/") == {2 / 4}
    assert rates_below("language_decoder/block_2/") == {2.0}
    assert rates_below("language_decoder/norm") == {2.0}
    assert rates_below("language_decoder/token_embedding/reverse_embeddings") == {2.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"component": "decoders"}, r"No trainable variable lies in decoders/block_0.*vlm/vision"),
        ({"component": "vlm"}, "No trainable variable lies in vlm/block_0"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0"),
        ({"decay": 0.0}, r"decay must lie in \(0, 1\]"),
        ({"decay": 1.5}, r"decay must lie in \(0, 1\]"),
        ({"before": "stem"}, "patch_embedding/kernel' must lie in one.*matches none.*before="),
        ({"after": "head"}, "vision/norm/scale' must lie in one block.*matches none"),
        ({"after": "norm|patch_embedding"}, "patch_embedding/kernel' must lie in one block"),
        ({"before": "patch_embedding|block_0"}, "block_0/norm/scale' must lie in one block"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"paths": PATHS, "component": "vision", "learning_rate": 1.0, "decay": 0.5}
    with pytest.raises(ValueError, match=message):
        rates(**(arguments | change))


def test_schedules_are_made_per_rate():
    made = layerwise_components(PATHS, "vision", 1.0, 0.5, lambda r: keras.optimizers.SGD(2 * r))
    assert np.allclose(float(made["vision/block_10"].learning_rate.numpy()), 2.0)
    assert len({id(optimizer) for optimizer in made.values()}) == 5
