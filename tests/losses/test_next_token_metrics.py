import keras
import numpy as np
import pytest

from dl_techniques.losses import EmptyBatches, NamedMeans, NextTokenAccuracy, SupervisedTokens

IGNORE = -100


def logits_for(ids, vocabulary=6):
    """Logits float32[B, L, V] whose largest entry is at the given ids."""
    return np.eye(vocabulary, dtype="float32")[np.asarray(ids)]


def test_accuracy_shifts_drops_the_prefix_and_weighs_tokens():
    accuracy = NextTokenAccuracy()
    # Two prefix positions, then positions 0..3 answer 1, 2, 3, 9: right, right, ignored, nothing.
    labels = np.array([[5, 1, 2, IGNORE]], "int32")
    accuracy.update_state(labels, logits_for([[0, 0, 1, 2, 3, 4]]))
    assert float(accuracy.result()) == 1.0
    # One supervised token, wrong: 2 of 3 so far, not the mean of 1 and 0.
    accuracy.update_state(np.array([[IGNORE, 4]], "int32"), logits_for([[3, 4]]))
    assert float(accuracy.result()) == pytest.approx(2 / 3)
    accuracy.reset_state()
    assert float(accuracy.result()) == 0.0


def test_accuracy_with_sample_weight():
    accuracy = NextTokenAccuracy()
    labels = np.array([[0, 1], [0, 1]], "int32")
    accuracy.update_state(labels, logits_for([[1, 0], [2, 0]]), sample_weight=np.array([3.0, 1.0]))
    assert float(accuracy.result()) == pytest.approx(0.75)


def test_counts_of_tokens_and_empty_batches():
    tokens, empty = SupervisedTokens(), EmptyBatches()
    batches = [
        np.array([[1, 2, 3], [IGNORE, IGNORE, 3]], "int32"),
        np.array([[1, IGNORE, IGNORE]], "int32"),
        np.full((2, 3), IGNORE, "int32"),
    ]
    for labels in batches:
        tokens.update_state(labels, None)
        empty.update_state(labels, None)
    assert int(tokens.result()) == 3
    assert int(empty.result()) == 2


def test_token_count_stays_exact_past_float32():
    tokens = SupervisedTokens()
    tokens.count.assign(2**24)
    tokens.update_state(np.array([[IGNORE, 1]], "int32"))
    assert int(tokens.result()) == 2**24 + 1


@pytest.mark.parametrize("metric", [NextTokenAccuracy, SupervisedTokens, EmptyBatches])
def test_config_round_trip(metric):
    again = keras.metrics.deserialize(keras.metrics.serialize(metric(ignore_index=0, name="m")))
    assert type(again) is metric
    assert (again.ignore_index, again.name) == (0, "m")


def test_named_means():
    means = NamedMeans(["vqa", "text", "none"], prefix="source/")
    means.update_state(np.array([6.0, 0.0, 0.0], "float32"), np.array([2.0, 0.0, 0.0], "float32"))
    means.update_state(np.array([0.0, 5.0, 0.0], "float32"), np.array([1.0, 4.0, 0.0], "float32"))
    results = {name: float(mean) for name, mean in means.result().items()}
    assert np.isnan(results.pop("source/none"))
    assert results == {"source/vqa": 2.0, "source/text": 1.25}
    means.reset_state()
    assert all(np.isnan(float(mean)) for mean in means.result().values())
    again = keras.metrics.deserialize(keras.metrics.serialize(means))
    assert (again.names, again.prefix) == (("vqa", "text", "none"), "source/")
