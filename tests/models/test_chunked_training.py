"""A loss with `chunk_size`: the same training without the logits of all tokens."""

import keras
import numpy as np
import pytest
from keras import ops
from only_on import only_on
from tiny_models import mixed_batch, text_batch, tiny_config, tiny_nanovlm

from dl_techniques.losses import EmptyBatches, NanoVLMLoss, NextTokenAccuracy, SupervisedTokens


def model_of(fusion, tied):
    config = tiny_config(fusion)
    parts = (("vision_config", {"depth": 1}), ("language_config", {"num_layers": 1}))
    changes = {name: {**config[name], **change} for name, change in parts}
    changes["language_config"]["tie_embeddings"] = tied
    changes["vocab_size"] = 40  # No other width of the model.
    return tiny_nanovlm(fusion, **changes)


def batch_of(fusion):
    batch = mixed_batch() if fusion == "placeholder" else text_batch()
    learned = batch["attention_mask"] & (np.arange(16) % 3 > 0)
    return batch, np.where(learned, batch["text_tokens"], -100).astype("int32")


def trained(fusion, tied, chunk_size, steps=2):
    """Return what some steps and an evaluation report, and the weights after them."""
    model = model_of(fusion, tied)
    model.compile(
        optimizer=keras.optimizers.SGD(0.1),
        loss=NanoVLMLoss(label_smoothing=0.1, chunk_size=chunk_size),
        metrics=[NextTokenAccuracy(name="accuracy"), SupervisedTokens(), EmptyBatches()],
    )
    batch, labels = batch_of(fusion)
    logs = [model.train_on_batch(batch, labels, return_dict=True) for _ in range(steps)]
    logs.append(model.test_on_batch(batch, labels, return_dict=True))
    assert not model.gives_states
    assert model({**batch}).shape[-1] == model.vocab_size
    return logs, [ops.convert_to_numpy(w) for w in model.trainable_weights]


@pytest.mark.parametrize(("fusion", "tied"), [("placeholder", True), ("prefix", False)])
def test_training_and_evaluation_are_the_same(fusion, tied):
    plain, expected = trained(fusion, tied, None)
    chunked, weights = trained(fusion, tied, 7)
    for one, other in zip(plain, chunked, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(float(other[name]), float(one[name]), rtol=3e-6)
    assert plain[0]["loss"] != plain[1]["loss"] and plain[2]["supervised_tokens"] > 0
    for one, other in zip(expected, weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@only_on("jax")  # Others do not show a step's intermediates.
def test_logits_of_all_tokens_never_exist():
    """Every intermediate of the compiled step is smaller than the logits."""
    import jax

    model = model_of("placeholder", True)
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss=NanoVLMLoss(chunk_size=4), metrics=[])
    batch, labels = batch_of("placeholder")
    model.optimizer.build(model.trainable_variables)
    state = model._get_jax_state(
        trainable_variables=True,
        non_trainable_variables=True,
        optimizer_variables=True,
        metrics_variables=True,
    )
    text = str(jax.make_jaxpr(model.train_step)(state, (batch, labels)))
    assert f"f32[3,16,{model.vocab_size}]" not in text and f"f32[1,4,{model.vocab_size}]" in text
    model.loss.chunk_size = None
    text = str(jax.make_jaxpr(model.train_step)(state, (batch, labels)))
    assert f"f32[3,16,{model.vocab_size}]" in text


def test_metrics_of_logits_are_refused_and_the_size_is_checked():
    model = model_of("placeholder", True)
    of_logits = keras.metrics.SparseCategoricalAccuracy()
    model.compile(optimizer="sgd", loss=NanoVLMLoss(chunk_size=4), metrics=[of_logits])
    with pytest.raises(ValueError, match="needs logits, which a loss with chunk_size never has"):
        model.train_on_batch(*batch_of("placeholder"))
    assert not model.gives_states
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        NanoVLMLoss(chunk_size=0)
    assert NanoVLMLoss.from_config(NanoVLMLoss(chunk_size=5).get_config()).chunk_size == 5
