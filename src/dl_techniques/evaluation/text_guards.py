"""Text-only guards: what a vision-language model keeps of its decoder's knowledge.

They come from lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness), which
loads the data, writes the prompts and scores. None of them runs code that a model wrote.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dl_techniques.generation import Sampler
from dl_techniques.utils.logger import logger

# Name -> (task of the harness, examples before the question, its figure): as on the first Open LLM
# Leaderboard.
GUARDS: dict[str, tuple[str, int, str]] = {
    "mmlu": ("mmlu", 5, "acc,none"),
    "gsm8k": ("gsm8k", 5, "exact_match,strict-match"),
    "hellaswag": ("hellaswag", 10, "acc_norm,none"),
    "arc_challenge": ("arc_challenge", 25, "acc_norm,none"),
    "truthfulqa": ("truthfulqa_mc2", 0, "acc,none"),
}


def run_guards(
    model, names: Sequence[str], batch_size: int = 8, limit: int | None = None
) -> dict[str, dict[str, float]]:
    """Return name -> `value`, `low` and `high` (95 %, by the harness' standard error) of guards.

    Args:
        model: A `VisionLanguageModel` with its processor.
        names: Of `GUARDS`.
        batch_size: Requests at a time.
        limit: So many questions of each task.

    Raises:
        ValueError: for an unknown name.
        ImportError: if the harness is not installed.
    """
    unknown = [name for name in names if name not in GUARDS]
    if unknown:
        raise ValueError(f"Unknown guards {unknown}; there are {', '.join(GUARDS)}.")
    harness = _import_harness()
    results = {}
    for name in names:
        task, examples, figure = GUARDS[name]
        found = harness.simple_evaluate(
            harness_model(model, batch_size),
            tasks=[task],
            num_fewshot=examples,
            limit=limit,
            torch_random_seed=None,
        )
        results[name] = guard_figure(found["results"][task], figure)
    return results


def guard_figure(found: Mapping[str, Any], figure: str) -> dict[str, float]:
    """Return `value`, `low` and `high` of a figure among the harness' results."""
    value = float(found[figure])
    error = found.get(figure.replace(",", "_stderr,"))
    half = 1.96 * error if isinstance(error, float) else float("nan")
    return {"value": value, "low": value - half, "high": value + half}


def harness_model(model, batch_size: int = 8):
    """Return a model as `lm_eval.api.model.LM`, for `lm_eval.simple_evaluate`.

    Contexts that are too long lose their beginning, as with the harness' own models; how many is
    logged.

    Args:
        model: A `VisionLanguageModel` with its processor.
        batch_size: Requests at a time.

    Raises:
        ImportError: if the harness is not installed.
        ValueError: if the model has no processor.
    """
    _import_harness()
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    if model.processor is None:
        raise ValueError("Text needs a tokenizer: set model.processor.")
    tokenizer = model.processor.tokenizer
    longest = model.language_decoder.max_positions

    class HarnessModel(TemplateLM):
        """Requests of the harness as arrays of ids."""

        @property
        def eot_token_id(self):
            return tokenizer.eos_id

        @property
        def prefix_token_id(self):
            return tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id

        def tok_encode(self, string, add_special_tokens=None, **kwargs):
            return tokenizer.encode(string)

        def _loglikelihood_tokens(self, requests, **kwargs):
            results = []
            for batch in _batches(requests, batch_size):
                answers = [continuation for _, _, continuation in batch]
                room = longest - max(map(len, answers))
                scores = model.score(_arrays([c for _, c, _ in batch], room), answers)
                results += [(score.total, score.greedy) for score in scores]
            return results

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            totals = []
            for (text,) in (request.args for request in requests):
                windows = get_rolling_token_windows(
                    self.tok_encode(text), self.prefix_token_id, longest - 1, 1
                )
                pairs = [("", *make_disjoint_window(window)) for window in windows]
                totals.append(sum(total for total, _ in self._loglikelihood_tokens(pairs)))
            return totals

        def generate_until(self, requests, disable_tqdm=False):
            return [_generated(model, *request.args, longest) for request in requests]

    return HarnessModel()


def _generated(model, context: str, settings: Mapping[str, Any], longest: int) -> str:
    """Return what a model writes after a context, up to the first of the stop strings."""
    tokenizer = model.processor.tokenizer
    most = min(int(settings.get("max_gen_toks", 256)), longest - 1)
    until = settings.get("until") or []
    until = [until] if isinstance(until, str) else list(until)
    sampler = Sampler(temperature=float(settings.get("temperature", 0.0) or 0.0))
    ids = tokenizer.encode(context)
    (row,) = model.generate(
        _arrays([ids], longest - most), most, sampler, stop_strings=until
    ).tolist()
    ends = {*model.stop_ids, *model.processor.stop_ids}
    end = next((k for k, token in enumerate(row) if token in ends), len(row))
    text = tokenizer.decode(row[:end])
    for stop in until:
        text = text.split(stop)[0]
    return text


def _arrays(contexts: Sequence[Sequence[int]], room: int) -> dict[str, np.ndarray]:
    """Return the batch of some contexts, of which at most the last `room` ids are kept."""
    cut = sum(len(context) > room for context in contexts)
    if cut:
        logger.warning("%d of %d contexts lose all but %d tokens.", cut, len(contexts), room)
    contexts = [list(context)[-room:] for context in contexts]
    length = max(map(len, contexts))
    tokens = np.zeros((len(contexts), length), "int32")
    mask = np.zeros(tokens.shape, bool)
    for row, context in enumerate(contexts):
        tokens[row, : len(context)] = context
        mask[row, : len(context)] = True
    return {"text_tokens": tokens, "attention_mask": mask}


def _batches(items: Sequence, size: int):
    return (items[start : start + size] for start in range(0, len(items), size))


def _import_harness():
    try:
        import lm_eval
    except ImportError as error:
        raise ImportError(
            "Text-only guards need lm-evaluation-harness: pip install 'dl_techniques[eval]'."
        ) from error
    return lm_eval
