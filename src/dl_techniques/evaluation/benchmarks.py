"""The table of benchmarks: where the data is, how a row is read, what is asked, how it is scored.

Prompts are lmms-eval's. Local sets, and those that this package generates, are asked as they are
in training: without anything added.
"""

from collections.abc import Callable
from dataclasses import dataclass

from dl_techniques.datasets.hub_rows import PREFIX
from dl_techniques.datasets.row_fields import Row
from dl_techniques.evaluation import benchmark_rows as rows
from dl_techniques.evaluation import choice_rows as choices
from dl_techniques.evaluation.questions import Find, Question
from dl_techniques.evaluation.scoring import SCORINGS, Scoring

PHRASE = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Benchmark:
    """One row of the table.

    Attributes:
        read: Row, finder of images -> its questions.
        scoring: A key of `SCORINGS`.
        suffix: What is added to a question's text.
        max_new_tokens: The longest answer.
        hub: "owner/name" of the data set on the hub; None: a local set.
        config: Its configuration.
        split: Its split, or that of the local set's files.
        open_suffix: What is added in place of `suffix` to questions without options.
        images_config: The configuration that holds the pictures, where rows only name them.
        note: What makes figures differ from those of others.
    """

    read: Callable[[Row, Find], list[Question]]
    scoring: str
    suffix: str = ""
    max_new_tokens: int = 16
    hub: str | None = None
    config: str | None = None
    split: str = "test"
    open_suffix: str | None = None
    images_config: str | None = None
    note: str = ""

    @property
    def metric(self) -> Scoring:
        """How answers are scored."""
        return SCORINGS[self.scoring]

    @property
    def place(self) -> str | None:
        """What `open_rows` opens: "hf://owner/name"."""
        return None if self.hub is None else PREFIX + self.hub

    def prompt(self, question: Question, suffix: str | None = None) -> str:
        """Return what is asked, as text.

        Args:
            question: One of this benchmark.
            suffix: What is added instead of the benchmark's own.
        """
        if suffix is None:
            suffix = self.suffix
            if self.open_suffix is not None and not question.options:
                suffix = self.open_suffix
        return question.text + suffix


BENCHMARKS: dict[str, Benchmark] = {
    "vqav2": Benchmark(rows.read_vqav2, "vqa", PHRASE, 16, "lmms-lab/VQAv2", split="validation"),
    "textvqa": Benchmark(
        rows.read_textvqa, "textvqa", PHRASE, 16, "lmms-lab/textvqa", split="validation"
    ),
    "chartqa": Benchmark(
        rows.read_chartqa,
        "relaxed",
        "\nAnswer the question with a single word.",
        16,
        "lmms-lab/ChartQA",
    ),
    "docvqa": Benchmark(
        rows.read_docvqa, "anls", PHRASE, 32, "lmms-lab/DocVQA", "DocVQA", "validation"
    ),
    "infographicvqa": Benchmark(
        rows.read_docvqa, "anls", PHRASE, 32, "lmms-lab/DocVQA", "InfographicVQA", "validation"
    ),
    "gqa": Benchmark(
        rows.read_gqa,
        "gqa",
        PHRASE,
        16,
        "lmms-lab/GQA",
        "testdev_balanced_instructions",
        "testdev",
        images_config="testdev_balanced_images",
    ),
    "pope": Benchmark(rows.read_pope, "pope", PHRASE, 128, "lmms-lab/POPE"),
    "mme": Benchmark(rows.read_mme, "mme", PHRASE, 16, "lmms-lab/MME"),
    "mmstar": Benchmark(choices.read_mmstar, "mmstar", LETTER, 16, "Lin-Chen/MMStar", split="val"),
    "mmmu": Benchmark(
        choices.read_mmmu,
        "mmmu",
        "\n" + LETTER,
        128,
        "lmms-lab/MMMU",
        split="validation",
        open_suffix="\n" + PHRASE,
    ),
    "mmbench": Benchmark(
        choices.read_mmbench,
        "circular_choice",
        LETTER,
        64,
        "lmms-lab/MMBench",
        "en",
        "dev",
        note="Answers are read by rule, not by GPT.",
    ),
    "seedbench": Benchmark(choices.read_seedbench, "choice", LETTER, 16, "lmms-lab/SEED-Bench"),
    "mathvista": Benchmark(
        choices.read_mathvista,
        "mathvista",
        "",
        256,
        "AI4Math/MathVista",
        split="testmini",
        note="Answers are read by rule, not by GPT.",
    ),
    "ai2d": Benchmark(choices.read_ai2d, "choice", LETTER, 16, "lmms-lab/ai2d"),
    "scienceqa": Benchmark(
        choices.read_scienceqa, "choice", LETTER, 16, "lmms-lab/ScienceQA", "ScienceQA-IMG"
    ),
    "a-okvqa": Benchmark(
        choices.read_a_okvqa, "choice", LETTER, 16, "HuggingFaceM4/A-OKVQA", split="validation"
    ),
    "ocrbench": Benchmark(rows.read_ocrbench, "ocrbench", "", 128, "echo840/OCRBench"),
    "refcoco": Benchmark(rows.read_refcoco, "box", "", 48, "lmms-lab/RefCOCO", split="val"),
    "refcoco+": Benchmark(rows.read_refcoco, "box", "", 48, "lmms-lab/RefCOCOplus", split="val"),
    "refcocog": Benchmark(rows.read_refcoco, "box", "", 48, "lmms-lab/RefCOCOg", split="val"),
    "coco_captions": Benchmark(
        rows.read_captions, "captions", "", 64, "lmms-lab/COCO-Caption2017", split="val"
    ),
    "flickr30k": Benchmark(rows.read_captions, "captions", "", 64, "lmms-lab/flickr30k"),
    "nlvr2": Benchmark(rows.read_nlvr, "yes_no", PHRASE, 16, "lmms-lab/NLVR2"),
    "easy_vqa": Benchmark(rows.read_own, "exact_match", split="train"),
    "coco_yesno": Benchmark(rows.read_own, "yes_no", split="dev"),
    "daquar": Benchmark(rows.read_own, "exact_match", split="train"),
    "nlvr1": Benchmark(rows.read_own, "yes_no", split="dev"),
    "sroie": Benchmark(rows.read_own, "anls", max_new_tokens=64, split="train"),
    "flickr8k": Benchmark(rows.read_own, "captions", max_new_tokens=32, split="dev"),
    "chartqa_subset": Benchmark(rows.read_own, "relaxed", split="train"),
    "cifar10": Benchmark(rows.read_own, "exact_match", split="train"),
    "shapes": Benchmark(rows.read_sample, "exact_match", split="heldout"),
}


def get_benchmark(name: str) -> Benchmark:
    """Return a row of the table.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"Unknown benchmark {name!r}; known are {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]
