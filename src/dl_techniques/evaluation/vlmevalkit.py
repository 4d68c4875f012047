"""A model of VLMEvalKit, and a launcher that needs no change to VLMEvalKit.

VLMEvalKit's launcher is the file run.py of its repository, which pip does not install: install it
with `pip install -e .` in a clone. Then::

    python -m dl_techniques.evaluation.vlmevalkit --model-path FOLDER --data MMBench_DEV_EN

asks the model with VLMEvalKit's own prompts. Its answers are kept under the name that `--model`
gives; all other flags are those of run.py but for `--config`, as `--mode infer`, `--work-dir` or
`--judge exact_matching`.

VLMEvalKit needs PyTorch, also where the model runs on another backend.
"""

import argparse
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

_CLASS = "VLMEvalKitModel"
_MAX_NEW_TOKENS = 512


def __getattr__(name: str):
    # The class derives from VLMEvalKit's, which may not be there when this module is imported.
    if name == _CLASS:
        return _model_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _model_class():
    from vlmeval.vlm.base import BaseModel

    class VLMEvalKitModel(BaseModel):
        """A `VisionLanguageModel` that answers VLMEvalKit's questions, greedily.

        Args:
            pretrained: Training run, preset folder, or hf://owner/name.
            tokenizer: Folder or hf://owner/name, if the model has none.
            max_new_tokens: The longest answer.
            model: A loaded model in place of `pretrained`.
            **others: What VLMEvalKit passes to models of some names; ignored.
        """

        INSTALL_REQ = False
        INTERLEAVE = True

        def __init__(
            self,
            pretrained=None,
            tokenizer=None,
            max_new_tokens=_MAX_NEW_TOKENS,
            model=None,
            **others,
        ):
            super().__init__()
            if model is None:
                from dl_techniques.cli_loading import load_answering

                model = load_answering(pretrained, tokenizer)
            self._model, self._max_new_tokens = model, int(max_new_tokens)

        def use_custom_prompt(self, dataset) -> bool:
            """Return False: VLMEvalKit's own prompts are asked."""
            return False

        def generate_inner(self, message, dataset=None) -> str:
            """Return the answer to texts and pictures in their order."""
            turns = groupby(message, lambda item: item.get("role", "user"))
            return self._answer([_turn(role, items) for role, items in turns])

        def chat_inner(self, message, dataset=None) -> str:
            """Return the next answer of a conversation."""
            return self._answer([_turn(turn["role"], turn["content"]) for turn in message])

        def _answer(self, conversation):
            (answer,) = self._model.generate([conversation], self._max_new_tokens)
            return answer.strip()

    return VLMEvalKitModel


def _turn(role: str, items) -> dict[str, Any]:
    return {"role": role, "content": [_part(item) for item in items]}


def _part(item: Mapping[str, Any]) -> dict[str, Any]:
    kind = item["type"]
    if kind not in ("text", "image"):
        raise ValueError(f"Questions are about pictures, not about a {kind}: {item['value']}.")
    return {"type": kind, kind: item["value"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run VLMEvalKit's launcher on one of our models.

    Args:
        arguments: The command line; None: that of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m dl_techniques.evaluation.vlmevalkit",
        description="Run VLMEvalKit on a model. All other flags are those of VLMEvalKit's run.py.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model-path", required=True, help="Training run, preset folder, or hf://owner/name."
    )
    parser.add_argument("--model", help="Its name in the results; none: dl_techniques-FOLDER.")
    parser.add_argument("--tokenizer", help="Folder or hf://owner/name, if the model has none.")
    parser.add_argument("--max-new-tokens", type=int, default=_MAX_NEW_TOKENS)
    options, others = parser.parse_known_args(arguments)
    name = options.model or f"dl_techniques-{Path(options.model_path).resolve().name}"
    try:
        file = _find_launcher()
    except ImportError as error:
        parser.error(str(error))
    launcher = _import_file(file)
    if name in launcher.supported_VLM:
        parser.error(f"VLMEvalKit has a model {name} of its own: give another name by --model.")
    launcher.supported_VLM[name] = partial(
        _model_class(),
        pretrained=options.model_path,
        tokenizer=options.tokenizer,
        max_new_tokens=options.max_new_tokens,
    )
    sys.argv = [str(file), "--model", name, *others]
    launcher.main()


def _find_launcher() -> Path:
    """Return VLMEvalKit's run.py, which lies beside its package."""
    found = importlib.util.find_spec("vlmeval")
    if found is None or found.origin is None:
        raise ImportError("VLMEvalKit is not installed: pip install -e . in a clone of it.")
    file = Path(found.origin).parents[1] / "run.py"
    # Beside an installed package this could be somebody else's file.
    if not file.is_file() or "supported_VLM" not in file.read_text(encoding="utf-8"):
        raise ImportError(
            f"There is no run.py of VLMEvalKit in {file.parent}, where its package is: "
            "install VLMEvalKit by pip install -e . in a clone of it."
        )
    return file


def _import_file(file: Path):
    """Import run.py, before which the package is not: run.py first chooses the process' GPUs."""
    spec = importlib.util.spec_from_file_location("vlmevalkit_run", file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
