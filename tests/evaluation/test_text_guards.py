"""Text-only guards through lm-evaluation-harness."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from answering import character_model

from dl_techniques.evaluation.text_guards import (
    _arrays,
    guard_figure,
    harness_model,
    run_guards,
)


@pytest.fixture(scope="module")
def model():
    return character_model()


def request(*arguments):
    return SimpleNamespace(args=arguments)


def test_long_contexts_lose_their_beginning(caplog):
    batch = _arrays([[1, 2, 3], [4, 5, 6, 7, 8]], 4)
    assert batch["text_tokens"].tolist() == [[1, 2, 3, 0], [5, 6, 7, 8]]
    assert batch["attention_mask"].sum(axis=1).tolist() == [3, 4]
    assert "1 of 2 contexts lose all but 4 tokens" in caplog.text


def test_intervals_are_of_the_harness_standard_errors():
    found = {"acc,none": 0.5, "acc_stderr,none": 0.1, "acc_norm,none": 0.4, "alias": "x"}
    assert guard_figure(found, "acc,none") == pytest.approx(
        {"value": 0.5, "low": 0.304, "high": 0.696}
    )
    # With one question there is no standard error.
    lone = guard_figure({**found, "acc_norm_stderr,none": "N/A"}, "acc_norm,none")
    assert lone["value"] == 0.4 and math.isnan(lone["low"])


def test_unknown_guards_are_refused(model):
    with pytest.raises(ValueError, match="Unknown guards .'humaneval'.; there are mmlu, gsm8k"):
        run_guards(model, ["humaneval"])


def test_without_the_harness_it_is_named(model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"pip install 'dl_techniques\[eval\]'"):
        run_guards(model, ["mmlu"])


def test_requests_of_the_harness(model):
    harness, encode = harness_model(model, batch_size=2), model.processor.tokenizer.encode
    requests = [request("one is", " two"), request("a", " b"), request("", "x")]
    found = harness.loglikelihood(requests, disable_tqdm=True)
    (expected,) = model.score({"text_tokens": np.array([encode("one is")])}, [encode(" two")])
    assert found[0] == (pytest.approx(expected.total, abs=1e-4), expected.greedy)
    (start,) = model.score({"text_tokens": np.array([[1]])}, [encode("x")])
    assert found[2][0] == pytest.approx(start.total, abs=1e-4)
    (whole,) = harness.loglikelihood_rolling([request("ab")])
    (start,) = model.score({"text_tokens": np.array([[1]])}, [encode("ab")])
    assert whole == pytest.approx(start.total, abs=1e-4)


def test_replies_end_at_stop_strings(model):
    harness, tokenizer = harness_model(model), model.processor.tokenizer
    ids = model.generate({"text_tokens": np.array([tokenizer.encode("one is")])}, 6)[0]
    ends = set(model.processor.stop_ids)
    text = tokenizer.decode(itertools.takewhile(lambda token: token not in ends, ids.tolist()))
    (found,) = harness.generate_until([request("one is", {"max_gen_toks": 6, "until": ["zz"]})])
    assert found == text and len(text) > 1
    (cut,) = harness.generate_until([request("one is", {"max_gen_toks": 6, "until": [text[1]]})])
    assert cut == text[: text.index(text[1])]


@pytest.mark.no_backend
def test_a_task_of_the_harness(model, monkeypatch):
    import datasets
    import lm_eval

    rows = [{"question": f"{k} is", "choices": ["one", "two"], "answer": k % 2} for k in range(4)]
    task = {
        "task": "tiny",
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    simple = lm_eval.simple_evaluate

    def evaluate(harness, tasks, **options):
        assert tasks == ["mmlu"] and options.pop("num_fewshot") == 5
        found = simple(harness, tasks=[task], **options)
        return {"results": {"mmlu": found["results"]["tiny"]}}

    monkeypatch.setattr(lm_eval, "simple_evaluate", evaluate)
    encode, right = model.processor.tokenizer.encode, 0
    for row in rows:
        prompt = {"text_tokens": np.array([encode(row["question"])] * 2)}
        one, two = (score.total for score in model.score(prompt, [encode(" one"), encode(" two")]))
        right += row["answer"] == (two > one)
    assert run_guards(model, ["mmlu"])["mmlu"]["value"] == right / 4
