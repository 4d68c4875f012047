import numpy as np
import numpy_reference as reference
import pytest
from tiny_models import fill, run

from dl_techniques.layers import (
    DecoderBlock,
    EncoderBlock,
    ModalityProjection,
    SigLIPVisionTransformer,
    VisionTransformer,
)
from dl_techniques.layers.vision_transformer_siglip import SETTINGS

X = np.random.default_rng(0).standard_normal((2, 5, 8)).astype("float32")


def _built(layer, shape=(None, None, 8)):
    layer.build(shape)
    return fill(layer)


def test_encoder_block():
    layer = _built(EncoderBlock(8, 2, 12, norm_epsilon=0.01))
    expected = reference.encoder_block(np.float64(X), reference.weights(layer), 2, 0.01)
    np.testing.assert_allclose(run(layer, X), expected, rtol=1e-5, atol=1e-5)


def test_encoder_block_with_rms_norm_and_layer_scale():
    layer = EncoderBlock(
        8, 2, 12, "gelu", norm_epsilon=0.01, norm_type="rms", use_qkv_bias=False, layer_scale=0.3
    )
    layer.build((None, None, 8))
    w = reference.weights(layer)
    assert "attention/q_proj/bias" not in w and "attention/o_proj/bias" in w
    np.testing.assert_allclose([w["ls1/scale"], w["ls2/scale"]], 0.3)
    w = reference.weights(fill(layer))
    x = np.float64(X)
    normed = reference.rms_norm(x, reference.part(w, "norm1"), 0.01)
    attended = reference.attention(normed, reference.part(w, "attention"), 2, 2)
    x = x + attended * w["ls1/scale"]
    normed = reference.rms_norm(x, reference.part(w, "norm2"), 0.01)
    out = reference.mlp(normed, reference.part(w, "mlp"), reference.gelu)
    np.testing.assert_allclose(run(layer, X), x + out * w["ls2/scale"], rtol=1e-5, atol=1e-5)


def test_layer_scale_of_zero_is_a_layer_scale():
    layer = EncoderBlock(8, 2, 12, layer_scale=0.0)
    layer.build((None, None, 8))
    np.testing.assert_array_equal(run(layer, X), X)


def test_decoder_block():
    layer = _built(DecoderBlock(8, 4, 12, num_kv_heads=2, rope_theta=50.0, norm_epsilon=0.01))
    mask = np.tril(np.ones((2, 5, 5), bool))
    got = run(lambda x, m: layer(x, attention_mask=m), X, mask[:, None])
    expected = reference.decoder_block(
        np.float64(X), reference.weights(layer), 4, 2, mask, 50.0, 0.01
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_vision_transformer_is_its_parts_in_order():
    layer = _built(VisionTransformer(8, 4, 8, 2, 2, mlp_ratio=1.5), (None, 8, 8, 3))
    assert layer.blocks[0].mlp_dim == 12
    images = np.random.default_rng(1).uniform(-1, 1, (2, 8, 8, 3)).astype("float32")
    w = reference.weights(layer)
    patches = images.reshape(2, 2, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 48)
    x = reference.dense(patches, reference.part(w, "patch_embedding/patch_projection"))
    x = x + w["patch_embedding/position_embedding"]
    for i in range(2):
        x = reference.encoder_block(x, reference.part(w, f"block_{i}"), 2, 1e-6)
    expected = reference.layer_norm(x, reference.part(w, "norm"), 1e-6)
    np.testing.assert_allclose(run(layer, images), expected, rtol=1e-4, atol=1e-5)


def test_class_token_is_dropped_last():
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
    whole = _built(VisionTransformer(**sizes, class_token=True), (None, 8, 8, 3))
    dropping = _built(
        VisionTransformer(**sizes, class_token=True, drop_class_token=True), (None, 8, 8, 3)
    )
    images = np.random.default_rng(1).uniform(-1, 1, (2, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(run(dropping, images), run(whole, images)[:, 1:])
    assert dropping.compute_output_shape((2, 8, 8, 3)) == (2, 4, 8)
    assert dropping.compute_output_shape((2, None, 8, 3)) == (2, None, 8)
    with pytest.raises(ValueError, match="needs class_token=True"):
        VisionTransformer(**sizes, drop_class_token=True)


def test_norms_around_the_blocks_are_optional():
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}
    norms = {"use_pre_norm": True, "use_final_norm": False, "use_patch_bias": False}
    layer = _built(VisionTransformer(**sizes, **norms, norm_type="rms"), (None, 8, 8, 3))
    paths = set(reference.weights(layer))
    assert "pre_norm/scale" in paths
    assert not {path for path in paths if path.startswith("norm/")}
    assert "patch_embedding/patch_projection/bias" not in paths
    with pytest.raises(ValueError, match="norm_type='batch' must be one of"):
        VisionTransformer(**sizes, norm_type="batch")


def test_siglip_takes_no_other_settings():
    for setting, value in (("norm_type", "rms"), ("drop_class_token", True), ("layer_scale", 0.1)):
        with pytest.raises(TypeError, match=setting):
            SigLIPVisionTransformer(**{setting: value})
    fixed = set(VisionTransformer().get_config()) - set(SigLIPVisionTransformer().get_config())
    assert fixed == set(SETTINGS)


def test_siglip_is_base_sized_by_default():
    layer = SigLIPVisionTransformer()
    assert layer.compute_output_shape((2, 224, 224, 3)) == (2, 196, 768)
    config = layer.get_config()
    expected = {
        "img_size": 224,
        "patch_size": 16,
        "embed_dim": 768,
        "depth": 12,
        "num_heads": 12,
        "mlp_ratio": 4.0,
        "dropout": 0.0,
        "class_token": False,
    }
    assert {k: config[k] for k in expected} == expected
    assert (layer.activation, layer.norm_epsilon) == ("gelu_tanh", 1e-6)
    assert (
        SigLIPVisionTransformer(class_token=True).compute_output_shape((2, 224, 224, 3))[1] == 197
    )


def test_mlp_widths_are_rounded():
    assert 22 * (30 / 22) < 30
    assert VisionTransformer(14, 14, 22, 1, 2, mlp_ratio=30 / 22).blocks[0].mlp_dim == 30
    assert VisionTransformer(14, 14, 1152, 1, 16, mlp_ratio=4304 / 1152).blocks[0].mlp_dim == 4304


def test_modality_projection():
    layer = _built(ModalityProjection(6, 10), (None, 17, 6))
    w = reference.weights(layer)
    assert set(w) == {"proj/kernel", "proj/bias", "layer_norm/gamma", "layer_norm/beta"}
    x = np.random.default_rng(2).standard_normal((1, 17, 6)).astype("float32")
    tokens = [x[0, :1].repeat(4, 0).reshape(1, 24)]
    tokens.append(reference.space_to_depth(x[0, 1:].reshape(4, 4, 6), 2))
    hidden = reference.gelu(reference.dense(np.concatenate(tokens), reference.part(w, "proj")))
    expected = reference.layer_norm(hidden, reference.part(w, "layer_norm"), 1e-6)
    np.testing.assert_allclose(run(layer, x)[0], expected, rtol=1e-4, atol=1e-5)


def test_bare_modality_projection_is_one_matrix():
    bare = ModalityProjection(6, 10, 2, use_gelu=False, use_layer_norm=False, use_bias=False)
    layer = _built(bare, (None, 16, 6))
    assert set(reference.weights(layer)) == {"proj/kernel"}
    x = np.random.default_rng(2).standard_normal((1, 16, 6)).astype("float32")
    expected = reference.space_to_depth(x[0].reshape(4, 4, 6), 2) @ layer.proj.kernel.numpy()
    np.testing.assert_allclose(run(layer, x)[0], expected, rtol=1e-5, atol=1e-5)


def test_modality_projection_of_the_guide():
    layer = ModalityProjection(768, 768)
    assert layer.compute_output_shape((2, 197, 768)) == (2, 50, 768)
    assert layer.compute_output_shape((None, 196, 768)) == (None, 49, 768)
    layer.build((None, 197, 768))
    kernel, bias = layer.proj.kernel.numpy(), layer.proj.bias.numpy()
    np.testing.assert_array_equal(bias, 0)
    # glorot_uniform: within +-sqrt(6 / (fan_in + fan_out)).
    limit = np.sqrt(6 / (3072 + 768))
    assert 0.98 * limit < np.abs(kernel).max() <= limit
