"""The loss of plain texts, beside the model's own logits."""

import json
import math

import keras
import numpy as np
import pytest
from answering import character_model
from command_line import check_one_line_error

from dl_techniques.evaluation.text_loss import read_texts, text_loss

TEXTS = ["To be", "ça ira", "or not to be, " * 12]


@pytest.fixture(scope="module")
def model():
    return character_model()


def by_hand(model, text):
    """The sum of the losses of a text's tokens, and their number."""
    ids = [model.processor.bos_token_id, *model.processor.tokenizer.encode(text)]
    total, room = 0.0, model.language_decoder.max_positions - 1
    for start in range(0, len(ids) - 1, room):
        part = np.array(ids[start : start + room + 1])
        logits = keras.ops.convert_to_numpy(model({"text_tokens": part[None]}))[0, :-1]
        logits = logits.astype("float64")
        chosen = logits[np.arange(len(part) - 1), part[1:]]
        total += (np.log(np.exp(logits).sum(axis=1)) - chosen).sum()
    return total, len(ids) - 1


def test_figures_are_those_of_the_logits(model):
    losses, tokens = zip(*(by_hand(model, text) for text in TEXTS), strict=True)
    assert tokens[-1] > 2 * model.language_decoder.max_positions
    found = text_loss(model, TEXTS, batch_size=2)
    loss = sum(losses) / sum(tokens)
    size = sum(len(text.encode()) for text in TEXTS)
    assert found["text_loss"]["value"] == pytest.approx(loss, rel=1e-5)
    assert found["text_perplexity"]["value"] == pytest.approx(math.exp(loss), rel=1e-4)
    bits = sum(losses) / size / math.log(2)
    assert found["text_bits_per_byte"]["value"] == pytest.approx(bits, rel=1e-5)
    for figure in found.values():
        assert figure["low"] <= figure["value"] <= figure["high"]
    alone = text_loss(model, TEXTS, batch_size=1)["text_loss"]["value"]
    assert alone == pytest.approx(found["text_loss"]["value"], rel=1e-6)


def test_few_tokens_are_scored_together(model, monkeypatch):
    monkeypatch.setattr("dl_techniques.evaluation.text_loss.MOST_TOKENS", 40)
    score, scored = type(model).score, []

    def watched(self, inputs, answers):
        scored.append([len(answer) for answer in answers])
        return score(self, inputs, answers)

    monkeypatch.setattr(type(model), "score", watched)
    text_loss(model, [*TEXTS, "a" * 18, "b" * 19], batch_size=4)
    assert all(len(lengths) * max(lengths) <= 40 for lengths in scored)
    assert max(map(len, scored)) > 1


def test_a_text_needs_a_beginning(model, monkeypatch):
    for name in ("bos_id", "eos_id"):
        monkeypatch.setattr(type(model.processor.tokenizer), name, None)
    with pytest.raises(ValueError, match="neither a bos nor an eos"):
        text_loss(model, TEXTS)


def test_texts_are_read_from_files_and_folders(tmp_path):
    with pytest.raises(ValueError):
        read_texts(tmp_path)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("One.\n\nTwo.\n")
    (tmp_path / "b.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    texts = read_texts(tmp_path)
    assert "One." in "".join(texts) and "Two." in "".join(texts)
    assert read_texts(tmp_path / "text" / "a.txt") == texts
    (tmp_path / "text" / "test.txt").write_text("Three.")
    (tmp_path / "text" / "a.txt").rename(tmp_path / "text" / "train.txt")
    assert read_texts(tmp_path) == texts and read_texts(tmp_path, "test") == ["Three."]
    with pytest.raises(ValueError, match="has no plain text"):
        read_texts(tmp_path / "b.jsonl")


def test_the_command_writes_it_beside_the_guards(model, command, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "dl_techniques.training.run_folder.load_model", lambda source, **options: model
    )
    (tmp_path / "a.txt").write_text("To be or not to be")
    flags = ("evaluate", "--model", "tiny", "--tasks", "text_loss", "--output", tmp_path / "out")
    check_one_line_error(command(*flags), "give their folder with --data")
    code, out, err = command(*flags, "--data", tmp_path / "a.txt", "--suffix", "unused")
    assert code == 0, err
    guards = json.loads((tmp_path / "out" / "results.json").read_text())["guards"]
    assert set(guards) == {"text_loss", "text_perplexity", "text_bits_per_byte"}
    loss, count = by_hand(model, "To be or not to be")
    assert f"{loss / count:.4f}" in out and "nats a token" in out
    written = guards["text_loss"]["command"]
    assert f"--tasks text_loss --data {tmp_path / 'a.txt'} " in written and "unused" not in written
