"""The plug-in of lmms-eval: with the package where it is installed, else with a stand-in."""

import importlib.metadata
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from answering import Oracle
from PIL import Image

from dl_techniques.evaluation import lmms_eval

RED, GREY = (Image.new("RGB", (4, 4), colour) for colour in ((200, 0, 0), (127, 127, 127)))


@pytest.fixture(autouse=True)
def harness(monkeypatch):
    """lmms-eval, or what our module takes of it."""
    try:
        importlib.metadata.version("lmms_eval")
    except importlib.metadata.PackageNotFoundError:

        class lmms:
            def __init__(self):
                self.task_dict = {}

        modules = {name: ModuleType(name) for name in
                   ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.models",
                    "lmms_eval.models.registry_v2")}  # fmt: skip
        modules["lmms_eval.api.model"].lmms = lmms
        modules["lmms_eval.models.registry_v2"].ModelManifest = lambda name, simple_class_path: (
            SimpleNamespace(model_id=name, simple_class_path=simple_class_path)
        )
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)


class Recorder(Oracle):
    """Keeps how it was asked."""

    processor = True

    def __init__(self, **answers):
        super().__init__(**answers)
        self.settings = []

    def generate(self, conversations, max_new_tokens, sampler, stop_strings):
        self.settings.append((max_new_tokens, sampler.temperature, stop_strings))
        return super().generate(conversations, max_new_tokens)

    def score(self, conversations, answers):
        return [
            SimpleNamespace(total=-6.0 if answer == "yes" else -8.0, tokens=[0, 0], greedy=False)
            for answer in answers
        ]


def plugin(model, documents, **options):
    plug = lmms_eval.LmmsModel(model=model, device="cuda:0", **options)
    plug.task_dict = {"pope": {"test": documents}}
    return plug


def requests(documents, settings):
    def pictures(document):
        return document["pictures"]

    return [
        SimpleNamespace(args=(document["text"], each, pictures, number, "pope", "test"))
        for number, (document, each) in enumerate(zip(documents, settings, strict=True))
    ]


def test_it_is_found_by_its_entry_point():
    manifest = lmms_eval.manifest()
    assert manifest.model_id == "dl_techniques"
    module, _, name = manifest.simple_class_path.rpartition(".")
    assert getattr(sys.modules[module], name).is_simple is True
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    (target,) = project["project"]["entry-points"]["lmms_eval.models"].values()
    assert target == "dl_techniques.evaluation.lmms_eval:manifest"
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        lmms_eval.Other  # noqa: B018


def test_answers_come_in_the_order_of_the_requests():
    pictures = [[RED], [GREY], [RED, GREY], []]
    documents = [{"text": f"q{k}?", "pictures": p} for k, p in enumerate(pictures)]
    long = {"max_new_tokens": 64, "until": ["\n\n"], "temperature": 0.7}
    short = {"max_new_tokens": 16, "do_sample": True, "temperature": 0.7, "until": "."}
    model = Recorder(**{"q3?": "maybe"})
    plug = plugin(model, documents, batch_size="2")
    answers = plug.generate_until(requests(documents, [long, short, long, long]))
    assert answers == ["yes", "no", "yes", "maybe"]
    assert model.asked == [["q0?", "q2?"], ["q3?"], ["q1?"]]
    assert model.settings == [(64, 0.0, ("\n\n",))] * 2 + [(16, 0.7, (".",))]


def test_losses_are_least_for_the_likeliest():
    documents = [{"text": "q?", "pictures": [RED], "answer": "yes"}]
    plug = plugin(Recorder(), documents)
    found = plug.loglikelihood(
        requests(documents, ["no"]) + requests(documents, [lambda document: document["answer"]])
    )
    assert found == [(4.0, False), (3.0, False)]


def test_what_is_not_supported_is_refused():
    documents = [{"text": "q?", "pictures": ["video.mp4"]}]
    plug = plugin(Recorder(), documents)
    with pytest.raises(ValueError, match="not about str"):
        plug.generate_until(requests(documents, [{}]))
    with pytest.raises(NotImplementedError, match="several rounds"):
        plug.generate_until_multi_round([])
    with pytest.raises(ValueError, match="There is no folder .*nowhere"):
        lmms_eval.LmmsModel("./nowhere")
