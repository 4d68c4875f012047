"""Questions that are asked while `fit` trains."""

import keras
import numpy as np
import pytest
from answering import character_model

from dl_techniques.evaluation.callback import EvaluationCallback
from dl_techniques.evaluation.question_answering import answer_questions
from dl_techniques.losses.nanovlm_loss import NanoVLMLoss

PICTURE = np.zeros((16, 16, 3), "uint8")
TURN = [{"role": "user", "content": "So?"}, {"role": "assistant", "content": "aaa"}]
SAMPLES = [{"id": str(k), "images": [PICTURE + k], "messages": TURN} for k in range(4)]


def test_a_model_is_asked_while_it_learns(tmp_path):
    model = character_model()
    dataset = model.processor.create_dataset(SAMPLES, batch_size=2, shuffle=False)
    model.compile(optimizer=keras.optimizers.Adam(0.03), loss=NanoVLMLoss())
    callback = EvaluationCallback(SAMPLES[:2], every=4, batch_size=2, max_new_tokens=4)
    model.fit(dataset, epochs=1, verbose=0, callbacks=[callback])
    assert callback.history == {}  # Two steps an epoch.
    best = keras.callbacks.ModelCheckpoint(
        str(tmp_path / "best.keras"), monitor="exact_match", mode="max", save_best_only=True
    )
    epochs = model.fit(dataset, epochs=10, verbose=0, callbacks=[callback, best])
    assert list(callback.history) == [4, 8, 12, 16, 20]
    found = [shares["all"] for shares in callback.history.values()]
    assert found[-1] == 1.0
    # It was asked in the first, third, ... of these epochs.
    assert epochs.history["exact_match"] == [share for share in found for _ in range(2)]
    assert [a.correct for a in answer_questions(model, SAMPLES[:2], 2, 4)] == [True, True]
    assert (tmp_path / "best.keras").is_file()


def test_what_cannot_be_asked_is_refused():
    for options in ({"every": 0}, {"every": 1, "batch_size": 0}):
        with pytest.raises(ValueError, match="of at least 1"):
            EvaluationCallback(SAMPLES, **options)
    with pytest.raises(ValueError, match="Expected samples, got 0"):
        EvaluationCallback([], every=1)
    model = character_model()
    dataset = model.processor.create_dataset(SAMPLES, batch_size=2)
    model.processor = None
    model.compile(optimizer="sgd", loss=NanoVLMLoss())
    with pytest.raises(ValueError, match="set model.processor"):
        model.fit(dataset, verbose=0, callbacks=[EvaluationCallback(SAMPLES, every=1)])


def test_no_room_for_an_answer_is_told_before_anything_is_learned():
    model = character_model()
    dataset = model.processor.create_dataset(SAMPLES, batch_size=2)
    model.compile(optimizer="sgd", loss=NanoVLMLoss())
    callback = EvaluationCallback(SAMPLES, every=100, max_new_tokens=60)
    with pytest.raises(ValueError, match="max_positions=64"):
        model.fit(dataset, verbose=0, callbacks=[callback])


def test_several_steps_at_a_time_are_counted():
    model = character_model()
    callback = EvaluationCallback(SAMPLES[:1], every=3, batch_size=1, max_new_tokens=1)
    callback.set_model(model)
    for _ in range(2):
        callback.on_epoch_begin(0)
        for last in (3, 7, 8):
            callback.on_train_batch_end(last)
    assert list(callback.history) == [4, 8, 9, 13, 17, 18]
