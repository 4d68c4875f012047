"""GradientAccumulationTrainer: uneven micro-batches make exactly the one big batch."""

import keras
import numpy as np
import pytest
from toy_runs import ToyData, adam, micro_nanovlm, weights

from dl_techniques.optimization import ComponentOptimizer
from dl_techniques.training.gradient_accumulation import GradientAccumulationTrainer
from dl_techniques.training.setup import component_optimizer
from dl_techniques.training.trainer import NanoVLMTrainer, supervised_tokens

# So large that the rounding of the weights themselves does not hide that of the gradients.
RATE = 1024.0


def sgd(accumulation_steps=None, rate=RATE):
    parts = {n: keras.optimizers.SGD(rate) for n in ("vision", "language", "projection")}
    return component_optimizer(parts, None, accumulation_steps)


def gradient(model, before):
    after = weights(model)
    return np.concatenate([((before[k] - after[k]) / RATE).ravel() for k in before])


def test_uneven_micro_batches_equal_the_big_batch():
    # With seed 0 terms cancel, so that unoptimised programs are wrong by 1.2e-6 on some CPUs; with
    # the next nine seeds by 4e-7 to 8e-7.
    data = ToyData(rows=5, seed=1, shuffle=False)
    data.labels[4] = -100  # A batch in which nothing is learned counts for nothing.
    counts = [supervised_tokens(data[i][1]) for i in range(5)]
    assert len(set(counts)) == 5
    whole = micro_nanovlm(seed=1)
    before = weights(whole)
    big = NanoVLMTrainer(whole, optimizer=sgd(1)).train_step(data.rows(np.arange(5)))
    parts = micro_nanovlm(seed=1)
    trainer = GradientAccumulationTrainer(parts, optimizer=sgd())
    losses = [trainer.accumulate_gradients(data[i]) for i in range(5)]
    assert np.dot(losses, counts) / sum(counts) == pytest.approx(big["loss"], rel=1e-6)
    assert all((value == before[path]).all() for path, value in weights(parts).items())
    trainer.apply_accumulated_gradients()
    expected, found = gradient(whole, before), gradient(parts, before)
    assert np.linalg.norm(expected) > 0.1
    assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)


def test_applying_starts_anew():
    model = micro_nanovlm()
    trainer = GradientAccumulationTrainer(model, optimizer=sgd())
    start, batch = weights(model), ToyData()[0]
    found = []
    for _ in range(2):
        for path, variable in zip(start, model.trainable_variables, strict=True):
            variable.assign(start[path])
        loss = trainer.accumulate_gradients(batch)
        trainer.accumulate_gradients(batch)
        trainer.apply_accumulated_gradients()
        found.append(gradient(model, start))
    # Twice the same batch is that batch, its loss not divided by the number of batches.
    np.testing.assert_array_equal(*found)
    expected = NanoVLMTrainer(model, optimizer=sgd(1))
    for path, variable in zip(start, model.trainable_variables, strict=True):
        variable.assign(start[path])
    assert expected.train_step(batch)["loss"] == pytest.approx(loss, rel=1e-6)
    once = gradient(model, start)
    assert np.linalg.norm(once - found[0]) <= 1e-6 * np.linalg.norm(once)


def test_steps_apply_after_as_many_batches_as_set():
    model = micro_nanovlm()
    trainer = GradientAccumulationTrainer(model, accumulation_steps=2, optimizer=sgd(rate=1e-3))
    start, data = weights(model), ToyData()
    moved = []
    for i in range(3):
        logs = trainer.train_step(data[i])
        assert set(logs) == {"loss", "accuracy"}
        moved.append(any((value != start[path]).any() for path, value in weights(model).items()))
    assert moved == [False, True, True]
    assert trainer.optimizer.pending_batches == 1


def test_nothing_to_apply_is_an_error():
    trainer = GradientAccumulationTrainer(micro_nanovlm())
    assert trainer.accumulation_steps == 4
    with pytest.raises(ValueError, match="Nothing to apply"):
        trainer.apply_accumulated_gradients()


@pytest.mark.parametrize(
    "optimizer",
    [
        adam(),
        keras.optimizers.SGD(0.1),
        ComponentOptimizer({".*": keras.optimizers.SGD(0.1)}, accumulation_steps=4),
    ],
)
def test_optimizers_that_apply_by_themselves_are_refused(optimizer):
    with pytest.raises(ValueError, match="accumulation_steps=None"):
        GradientAccumulationTrainer(micro_nanovlm(), optimizer=optimizer)


def test_fewer_steps_than_one_are_refused():
    with pytest.raises(ValueError, match="accumulation_steps=0"):
        GradientAccumulationTrainer(micro_nanovlm(), accumulation_steps=0)
