"""What every layer promises: symbolic shapes, configs, files, dtypes."""

import keras
import numpy as np
import pytest
from only_on import only_on
from tiny_models import fill, relative_path, run

from dl_techniques import layers
from dl_techniques.layers.transformer_blocks import LayerScale
from dl_techniques.models.language_decoder import LanguageDecoder

# name -> (layer factory, symbolic shapes, two concrete lists of shapes, output shapes)
CASES = {
    "pixel_shuffle": (
        lambda **k: layers.PixelShuffle(2, class_token=True, **k),
        [(None, None, 6)],
        [[(2, 17, 6)], [(3, 5, 6)]],
        [(2, 5, 24), (3, 2, 24)],
    ),
    "modality_projection": (
        lambda **k: layers.ModalityProjection(6, 10, **k),
        [(None, 17, 6)],
        [[(2, 17, 6)], [(3, 17, 6)]],
        [(2, 5, 10), (3, 5, 10)],
    ),
    "patch_embedding": (
        lambda **k: layers.PatchEmbedding(16, 4, 8, class_token=True, **k),
        [(None, None, None, 3)],
        [[(2, 16, 16, 3)], [(1, 24, 13, 3)]],
        [(2, 17, 8), (1, 19, 8)],
    ),
    "mlp": (
        lambda **k: layers.MLP(8, 12, **k),
        [(None, None, 8)],
        [[(2, 3, 8)], [(1, 4, 8)]],
        [(2, 3, 8), (1, 4, 8)],
    ),
    "swiglu": (
        lambda **k: layers.SwiGLU(8, 12, **k),
        [(None, None, 8)],
        [[(2, 3, 8)], [(1, 4, 8)]],
        [(2, 3, 8), (1, 4, 8)],
    ),
    "rotary_embedding": (
        lambda **k: layers.RotaryEmbedding(4, **k),
        [(None, None, 2, 4), (None, None)],
        [[(2, 3, 2, 4), (2, 3)], [(1, 5, 2, 4), (1, 5)]],
        [(2, 3, 2, 4), (1, 5, 2, 4)],
    ),
    "grouped_query_attention": (
        lambda **k: layers.GroupedQueryAttention(8, 4, 2, rope_theta=1e4, qk_norm=True, **k),
        [(None, None, 8)],
        [[(2, 3, 8)], [(1, 5, 8)]],
        [(2, 3, 8), (1, 5, 8)],
    ),
    "attention_with_a_norm_over_the_width": (
        lambda **k: layers.GroupedQueryAttention(8, 4, 2, qk_norm="width", **k),
        [(None, None, 8)],
        [[(2, 3, 8)], [(1, 5, 8)]],
        [(2, 3, 8), (1, 5, 8)],
    ),
    "attention_to_a_context": (
        lambda **k: layers.GroupedQueryAttention(8, 4, 2, qk_norm=True, **k),
        [(None, None, 8), (None, None, 8)],
        [[(2, 3, 8), (2, 4, 8)], [(1, 5, 8), (1, 2, 8)]],
        [(2, 3, 8), (1, 5, 8)],
    ),
    "gated_cross_attention_block": (
        lambda **k: layers.GatedCrossAttentionBlock(8, 4, 2, **k),
        [(None, None, 8), (None, None, 8)],
        [[(2, 3, 8), (2, 4, 8)], [(1, 5, 8), (1, 2, 8)]],
        [(2, 3, 8), (1, 5, 8)],
    ),
    "layer_scale": (
        lambda **k: LayerScale(0.5, **k),
        [(None, None, 8)],
        [[(2, 3, 8)], [(1, 5, 8)]],
        [(2, 3, 8), (1, 5, 8)],
    ),
    "encoder_block": (
        lambda **k: layers.EncoderBlock(8, 2, 16, **k),
        [(None, None, 8)],
        [[(2, 3, 8)], [(1, 5, 8)]],
        [(2, 3, 8), (1, 5, 8)],
    ),
    "decoder_block": (
        lambda **k: layers.DecoderBlock(8, 2, 16, num_kv_heads=1, **k),
        [(None, None, 8)],
        [[(2, 3, 8)], [(1, 5, 8)]],
        [(2, 3, 8), (1, 5, 8)],
    ),
    "vision_transformer": (
        lambda **k: layers.VisionTransformer(16, 4, 8, 1, 2, class_token=True, **k),
        [(None, None, None, 3)],
        [[(2, 16, 16, 3)], [(1, 24, 16, 3)]],
        [(2, 17, 8), (1, 25, 8)],
    ),
    "clip_vision_transformer": (
        lambda **k: layers.VisionTransformer(
            16,
            4,
            8,
            1,
            2,
            class_token=True,
            activation="quick_gelu",
            use_patch_bias=False,
            use_pre_norm=True,
            use_final_norm=False,
            **k,
        ),
        [(None, None, None, 3)],
        [[(2, 16, 16, 3)], [(1, 24, 16, 3)]],
        [(2, 17, 8), (1, 25, 8)],
    ),
    "intern_vision_transformer": (
        lambda **k: layers.VisionTransformer(
            16,
            4,
            8,
            1,
            2,
            class_token=True,
            activation="gelu",
            norm_type="rms",
            use_qkv_bias=False,
            qk_norm="width",
            layer_scale=0.1,
            use_final_norm=False,
            drop_class_token=True,
            **k,
        ),
        [(None, None, None, 3)],
        [[(2, 16, 16, 3)], [(1, 24, 16, 3)]],
        [(2, 16, 8), (1, 24, 8)],
    ),
    "siglip_vision_transformer": (
        lambda **k: layers.SigLIPVisionTransformer((16, 8), 4, 8, 1, 2, **k),
        [(None, None, None, 3)],
        [[(2, 16, 8, 3)], [(1, 16, 16, 3)]],
        [(2, 8, 8), (1, 16, 8)],
    ),
    "sincos_vision_transformer": (
        lambda **k: layers.VisionTransformer(16, 4, 8, 1, 2, positions="sincos", **k),
        [(None, None, None, 3)],
        [[(2, 16, 16, 3)], [(1, 24, 12, 3)]],
        [(2, 16, 8), (1, 18, 8)],
    ),
    "vision_projector": (
        lambda **k: layers.VisionProjector(10, 12, 3, 0.1, use_input_norm=True, **k),
        [(None, None, 6)],
        [[(2, 4, 6)], [(1, 9, 6)]],
        [(2, 4, 10), (1, 9, 10)],
    ),
    "perceiver_resampler": (
        lambda **k: layers.VisionResampler(5, depth=2, num_heads=2, **k),
        [(None, None, 6)],
        [[(2, 9, 6)], [(1, 7, 6)]],
        [(2, 5, 6), (1, 5, 6)],
    ),
    "pooling_resampler": (
        lambda **k: layers.VisionResampler(4, "avgpool", **k),
        [(None, None, 6)],
        [[(2, 9, 6)], [(1, 16, 6)]],
        [(2, 4, 6), (1, 4, 6)],
    ),
    "vision_token_compressor": (
        lambda **k: layers.VisionTokenCompressor(6, 5, 2, **k),
        [(None, None, 6)],
        [[(2, 9, 6)], [(1, 7, 6)]],
        [(2, 5, 6), (1, 5, 6)],
    ),
    "vision_connector": (
        lambda **k: layers.VisionConnector(
            {"output_dim": 10, "hidden_dim": 12},
            {"num_tokens": 3, "depth": 1, "num_heads": 2},
            scale_factor=2,
            **k,
        ),
        [(None, None, 6)],
        [[(2, 16, 6)], [(1, 4, 6)]],
        [(2, 3, 10), (1, 3, 10)],
    ),
    "decoder_block_that_looks_at_images": (
        lambda **k: layers.DecoderBlock(8, 2, 16, cross_attention=True, **k),
        [(None, None, 8), (None, None, 8)],
        [[(2, 3, 8), (2, 4, 8)], [(1, 5, 8), (1, 2, 8)]],
        [(2, 3, 8), (1, 5, 8)],
    ),
    "decoder_block_that_could_look_at_images": (
        lambda **k: layers.DecoderBlock(8, 2, 16, cross_attention=True, **k),
        [(None, None, 8)],
        [[(2, 3, 8)], [(1, 5, 8)]],
        [(2, 3, 8), (1, 5, 8)],
    ),
    "language_decoder": (
        lambda **k: LanguageDecoder(11, 8, 1, 2, 16, num_kv_heads=1, **k),
        [(None, None)],
        [[(2, 3)], [(1, 5)]],
        [(2, 3, 11), (1, 5, 11)],
    ),
}
# Here the second input is the call's argument `context`, of which no output shape depends.
WITH_CONTEXT = {
    "attention_to_a_context",
    "gated_cross_attention_block",
    "decoder_block_that_looks_at_images",
}
each_layer = pytest.mark.parametrize("name", list(CASES))


def _call_of(name, layer):
    """Return the layer's call as a function of its inputs, one after the other."""
    return (lambda x, c: layer(x, context=c)) if name in WITH_CONTEXT else layer


def _shapes_of(name, shapes):
    """Return the shapes that `compute_output_shape` wants."""
    return shapes[:1] if name in WITH_CONTEXT else shapes


def _values(shapes):
    """Return floats, or ids where the shape is [B, T]."""
    generator = np.random.default_rng(1)
    return [
        generator.integers(0, 9, s).astype("int32")
        if len(s) == 2
        else generator.standard_normal(s).astype("float32")
        for s in shapes
    ]


def _symbolic_model(name, **kwargs):
    make, symbolic, _, _ = CASES[name]
    inputs = [keras.Input(s[1:], dtype="int32" if len(s) == 2 else "float32") for s in symbolic]
    layer = make(**kwargs)
    model = keras.Model(inputs, _call_of(name, layer)(*inputs))
    fill(layer)
    return model, layer


def _with_unknown_sizes(model, symbolic):
    """On TensorFlow trace the model once with the unknown sizes; elsewhere sizes are known."""
    if keras.backend.backend() != "tensorflow":
        return model
    import tensorflow as tf

    kinds = [tf.TensorSpec(s, "int32" if len(s) == 2 else "float32") for s in symbolic]
    return tf.function(lambda *x: model(list(x)), input_signature=kinds)


@each_layer
def test_functional_model_with_unknown_sizes(name):
    _, symbolic, concrete, expected = CASES[name]
    model, layer = _symbolic_model(name)
    call = _with_unknown_sizes(model, symbolic)
    for shapes, out_shape in zip(concrete, expected, strict=True):
        values = _values(shapes)
        got = run(call, *values) if call is not model else run(lambda *x: model(list(x)), *values)
        assert got.shape == out_shape
        expected_values = run(_call_of(name, layer), *values)
        np.testing.assert_allclose(got, expected_values, rtol=1e-5, atol=1e-6)


@each_layer
def test_output_shape_is_known_before_the_layer_is_built(name):
    make, symbolic, concrete, expected = CASES[name]
    layer = make()
    for shapes, out_shape in zip(concrete, expected, strict=True):
        assert tuple(layer.compute_output_shape(*_shapes_of(name, shapes))) == out_shape
    batched = [(None, *s[1:]) for s in _shapes_of(name, concrete[0])]
    assert tuple(layer.compute_output_shape(*batched)) == (None, *expected[0][1:])
    assert layer.compute_output_shape(*_shapes_of(name, symbolic))[-1] == expected[0][-1]
    assert not layer.weights


@each_layer
def test_rebuilt_from_its_configs(name):
    _, layer = _symbolic_model(name)
    twin = type(layer).from_config(layer.get_config())
    twin.build_from_config(layer.get_build_config())
    assert twin.get_config() == layer.get_config()
    described = [(relative_path(v, layer), tuple(v.shape)) for v in layer.weights]
    assert [(relative_path(v, twin), tuple(v.shape)) for v in twin.weights] == described
    twin.set_weights(layer.get_weights())
    values = _values(CASES[name][2][0])
    calls = (_call_of(name, twin), _call_of(name, layer))
    np.testing.assert_array_equal(*(run(call, *values) for call in calls))


@each_layer
def test_keras_file_round_trip_is_bit_equal(name, tmp_path):
    model, _ = _symbolic_model(name)
    model.save(tmp_path / "layer.keras")
    loaded = keras.saving.load_model(tmp_path / "layer.keras")
    for before, after in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    values = _values(CASES[name][2][0])
    np.testing.assert_array_equal(
        run(lambda *x: loaded(list(x)), *values), run(lambda *x: model(list(x)), *values)
    )


def _exported(layer, sizes):
    import jax

    sizes = jax.export.symbolic_shape(sizes)
    x = jax.ShapeDtypeStruct(sizes, "float32")
    return jax.export.export(jax.jit(lambda x: layer(x)))(x).call


@only_on("jax")
@pytest.mark.parametrize(
    "name", ["patch_embedding", "sincos_vision_transformer", "perceiver_resampler"]
)
def test_export_with_unknown_sizes(name):
    _, layer = _symbolic_model(name)
    images = len(CASES[name][1][0]) == 4
    call = _exported(layer, "batch, height, width, 3" if images else "batch, length, 6")
    for shapes in CASES[name][2]:
        values = _values(shapes)
        np.testing.assert_allclose(call(*values), run(layer, *values), rtol=1e-5, atol=1e-6)


@only_on("jax")
@pytest.mark.parametrize("name", ["pixel_shuffle", "pooling_resampler"])
def test_square_grids_are_exported_with_fixed_sizes_alone(name):
    _, layer = _symbolic_model(name)
    with pytest.raises(ValueError, match="must be fixed for export on JAX, got length"):
        _exported(layer, "batch, length, 6")


@keras.saving.register_keras_serializable(package="tests")
class _Encoder(layers.VisionTransformer):
    """A user's layer: an argument of its own, the others are its base's."""

    def __init__(self, *args, extra=1, dtype=None, **options):
        super().__init__(*args, dtype=dtype, **options)
        self.extra = extra


@keras.saving.register_keras_serializable(package="tests")
class _SigLIPEncoder(layers.SigLIPVisionTransformer):
    def __init__(self, extra=1, **kwargs):
        super().__init__(**kwargs)
        self.extra = extra


@pytest.mark.no_backend
@pytest.mark.parametrize("kind", [_Encoder, _SigLIPEncoder])
def test_a_subclass_keeps_the_arguments_of_its_base(kind, tmp_path):
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    layer = kind(extra=3, **sizes, dropout=0.1, dtype="mixed_bfloat16")
    images = keras.Input((8, 8, 3))
    keras.Model(images, layer(images)).save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras").layers[-1]
    config = kind.__base__(**sizes, dropout=0.1, dtype="mixed_bfloat16").get_config()
    config = {**config, "extra": 3, "name": layer.name}
    assert loaded.get_config() == layer.get_config() == config


@pytest.mark.no_backend
def test_a_config_refuses_to_hide_that_kernels_were_quantized(tmp_path):
    model, layer = _symbolic_model("mlp")
    model.quantize("int8", filters="fc1")
    with pytest.raises(ValueError, match=r"fc1 was quantized \(int8\), which the config of mlp"):
        model.save(tmp_path / "model.keras")
    quantized = layers.MLP(8, 12, dtype="int8_from_float32")
    assert layers.MLP.from_config(quantized.get_config()).fc1.quantization_mode == "int8"


@each_layer
def test_low_precision_policies(name):
    make, _, concrete, _ = CASES[name]
    values = _values(concrete[0])
    exact = None
    for policy in ("float32", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16"):
        layer = make(dtype=policy)
        layer.build(concrete[0][0])
        fill(layer)
        kind = keras.DTypePolicy(policy)
        assert {v.dtype for v in layer.trainable_variables} <= {kind.variable_dtype}
        dtypes = []

        def call(*x, layer=layer, dtypes=dtypes):
            out = _call_of(name, layer)(*x)
            dtypes.append(keras.backend.standardize_dtype(out.dtype))
            return out

        got = run(call, *values)
        assert dtypes == [kind.compute_dtype]
        exact = got if exact is None else exact
        tolerance = 0.12 if "bfloat16" in policy else 0.02
        assert np.isfinite(got).all()
        assert np.abs(got - exact).max() <= tolerance * np.abs(exact).max()
