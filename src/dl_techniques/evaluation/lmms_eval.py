"""A plug-in of lmms-eval, through its entry-point group `lmms_eval.models`.

With both packages installed, lmms-eval finds our models by itself::

    python -m lmms_eval --model dl_techniques --model_args pretrained=FOLDER --tasks pope

lmms-eval needs PyTorch and torchvision, also where the model runs on another backend.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dl_techniques.generation import Sampler

MODEL_ID = "dl_techniques"
_CLASS = "LmmsModel"


def manifest():
    """Return what registers our models; lmms-eval calls it."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(MODEL_ID, simple_class_path=f"{__name__}.{_CLASS}")


def __getattr__(name: str):
    # The class derives from lmms-eval's, which may not be there when this module is imported.
    if name == _CLASS:
        return _model_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _model_class():
    from lmms_eval.api.model import lmms

    class LmmsModel(lmms):
        """A `VisionLanguageModel` that answers lmms-eval's requests.

        Args:
            pretrained: Training run, preset folder, or hf://owner/name.
            batch_size: Questions at a time.
            tokenizer: Folder or hf://owner/name, if the model has none.
            model: A loaded model in place of `pretrained`.
            **others: What lmms-eval passes to every model; ignored.
        """

        is_simple = True

        def __init__(self, pretrained=None, batch_size=1, tokenizer=None, model=None, **others):
            super().__init__()
            if model is None:
                from dl_techniques.cli_loading import load_answering

                model = load_answering(pretrained, tokenizer)
            self._model, self._batch_size = model, int(batch_size)

        @property
        def rank(self):
            """Of one process."""
            return 0

        @property
        def world_size(self):
            """Of one process."""
            return 1

        def generate_until(self, requests) -> list[str]:
            """Return one answer to each request."""
            answers: list[str] = [""] * len(requests)
            for settings, numbers in _alike([request.args[1] for request in requests]).items():
                for start in range(0, len(numbers), self._batch_size):
                    batch = numbers[start : start + self._batch_size]
                    prompts = [self._prompt(requests[number].args) for number in batch]
                    texts = _generate(self._model, prompts, *settings)
                    for number, text in zip(batch, texts, strict=True):
                        answers[number] = text
            return answers

        def loglikelihood(self, requests) -> list[tuple[float, bool]]:
            """Return (mean loss of the answer, whether it is the greedy one) of each request.

            lmms-eval takes the answer with the *least* value.
            """
            results = []
            for context, target, *place in (request.args for request in requests):
                if not isinstance(target, str):
                    target = target(self._document(*place[1:]))
                prompt = self._prompt((context, {}, *place))
                (score,) = self._model.score([prompt], [target])
                results.append((-score.total / len(score.tokens), score.greedy))
            return results

        def generate_until_multi_round(self, requests):
            """Refuse: no conversations of several rounds."""
            raise NotImplementedError("Tasks of several rounds are not supported.")

        def _document(self, number, task, split):
            return self.task_dict[task][split][number]

        def _prompt(self, arguments):
            context, _, find_pictures, *place = arguments
            pictures = find_pictures(self._document(*place)) or []
            unknown = [type(p).__name__ for p in pictures if not hasattr(p, "getbands")]
            if unknown:
                raise ValueError(f"Questions are about pictures, not about {unknown[0]} (videos).")
            parts = [{"type": "image", "image": picture} for picture in pictures]
            return [{"role": "user", "content": [*parts, {"type": "text", "text": context}]}]

    return LmmsModel


def _alike(settings: Sequence[Mapping[str, Any]]) -> dict[tuple, list[int]]:
    """Return (new tokens, temperature, stop strings) -> the numbers of the requests with these."""
    groups: dict[tuple, list[int]] = {}
    for number, each in enumerate(settings):
        until = each.get("until") or ()
        until = (until,) if isinstance(until, str) else tuple(until)
        temperature = float(each.get("temperature") or 0.0) if each.get("do_sample") else 0.0
        key = int(each.get("max_new_tokens", 128)), temperature, until
        groups.setdefault(key, []).append(number)
    return groups


def _generate(model, prompts, most: int, temperature: float, until: tuple[str, ...]) -> list[str]:
    sampler = Sampler(temperature=temperature)
    return [text.strip() for text in model.generate(prompts, most, sampler, stop_strings=until)]
