"""Blocks traced once and blocks computed again give what they give one by one."""

import keras
import numpy as np
import pytest
from keras import ops
from tiny_models import fill, mixed_batch, tiny_config, tiny_nanovlm

from dl_techniques.layers.feed_forward import ACTIVATIONS
from dl_techniques.layers.transformer_blocks import DecoderBlock, EncoderBlock
from dl_techniques.losses.nanovlm_loss import NanoVLMLoss
from dl_techniques.models.nano_vlm import NanoVLM


def models(dropout=0.0, **options):
    """Return two models with the same weights and seeds, of which the second rematerialises."""
    pair = []
    for remat in (False, True):
        keras.utils.set_random_seed(7)
        config = tiny_config()
        for part, depth in (("vision_config", "depth"), ("language_config", "num_layers")):
            config[part] = {**config[part], "dropout": dropout, "remat": remat, depth: 1}
        model = NanoVLM(**config, **options)
        pair.append(fill(model))
    return pair


def trained(model, steps=2):
    """Return the losses of some steps and the weights after them."""
    keras.utils.set_random_seed(3)
    model.compile(optimizer=keras.optimizers.SGD(0.05), loss=NanoVLMLoss())
    batch = mixed_batch()
    labels = np.where(batch["attention_mask"], batch["text_tokens"], -100).astype("int32")
    losses = [float(model.train_on_batch(batch, labels)) for _ in range(steps)]
    return losses, [ops.convert_to_numpy(w) for w in model.trainable_weights]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_training_is_the_same_with_and_without(dropout):
    plain, remat = (trained(model) for model in models(dropout))
    np.testing.assert_allclose(plain[0], remat[0], rtol=2e-6)
    assert plain[0][0] != pytest.approx(plain[0][-1])
    for one, other in zip(plain[1], remat[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6)


def test_frozen_blocks_stay_and_pass_the_gradient_on():
    _, model = models()
    model.language_decoder.blocks[-1].trainable = False
    before = [ops.convert_to_numpy(w) for w in model.language_decoder.blocks[-1].weights]
    first = ops.convert_to_numpy(model.vision_encoder.blocks[0].mlp.fc1.kernel)
    trained(model)
    for old, new in zip(before, model.language_decoder.blocks[-1].weights, strict=True):
        np.testing.assert_array_equal(old, ops.convert_to_numpy(new))
    assert not np.array_equal(
        first, ops.convert_to_numpy(model.vision_encoder.blocks[0].mlp.fc1.kernel)
    )


def test_it_survives_a_file(tmp_path):
    _, model = models()
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.language_decoder.remat and loaded.vision_encoder.remat
    assert not tiny_nanovlm().language_decoder.remat


def test_mixed_precision():
    plain, remat = (trained(model) for model in models(dtype="mixed_float16"))
    np.testing.assert_allclose(plain[0], remat[0], rtol=2e-2)


def deep_model():
    config = tiny_config()
    config["language_config"] = {**config["language_config"], "num_layers": 4}
    config["vision_config"] = {**config["vision_config"], "depth": 3}
    return fill(NanoVLM(**config))


@pytest.mark.parametrize(("kind", "blocks"), [(EncoderBlock, 3), (DecoderBlock, 4)])
def test_blocks_that_are_alike_are_traced_once(kind, blocks, monkeypatch):
    model, called, call = deep_model(), set(), kind.call

    def noted(self, *args, **options):
        called.add(self.name)
        return call(self, *args, **options)

    monkeypatch.setattr(kind, "call", noted)
    trained(model, 1)
    assert len(called) == (blocks if keras.backend.backend() == "torch" else 1)


@pytest.mark.parametrize("change", ["epsilon", "adapters", "frozen"])
def test_blocks_that_differ_are_told_apart(change):
    model, batch = deep_model(), mixed_batch()
    block = model.language_decoder.blocks[2]
    if change == "epsilon":
        block.input_norm.epsilon = 0.3
    elif change == "adapters":
        block.mlp.gate_proj.enable_lora(2, lora_alpha=8)
        kernel = block.mlp.gate_proj.lora_kernel_b
        kernel.assign(np.full(kernel.shape, 0.1))
    else:
        block.trainable = False
    before = [ops.convert_to_numpy(w) for w in block.non_trainable_weights]
    np.testing.assert_allclose(
        model.predict_on_batch(batch), ops.convert_to_numpy(model(batch)), atol=1e-5
    )
    losses, _ = trained(model)
    assert losses[1] != losses[0]
    for old, new in zip(before, block.non_trainable_weights, strict=True):
        np.testing.assert_array_equal(old, ops.convert_to_numpy(new))


@pytest.mark.parametrize("model", range(2), ids=["plain", "remat"])
def test_each_step_drops_others(model):
    model = models(0.3)[model]
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss=NanoVLMLoss())
    batch = mixed_batch()
    losses = {float(model.train_on_batch(batch, batch["text_tokens"])) for _ in range(3)}
    assert len(losses) == 3


def test_blocks_are_computed_again_where_wanted(monkeypatch):
    made, remat = [], keras.remat
    monkeypatch.setattr(keras, "remat", lambda f: made.append(f) or remat(f))
    plain, again = models()
    trained(plain, 1)
    assert set(made) <= set(ACTIVATIONS.values())
    made.clear()
    trained(again, 1)
    # An encoder's and a decoder's block.
    assert len(set(made) - set(ACTIVATIONS.values())) >= 2
