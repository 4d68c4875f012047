"""What `dl-techniques data inspect` shows: of one data set, a mixture, or a recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dl_techniques.datasets.inspection import as_text, histograms, inspect_samples
from dl_techniques.datasets.inspection_page import as_html
from dl_techniques.datasets.mixture import Mixture
from dl_techniques.datasets.mixture_recipes import MIXTURES, parse_shares
from dl_techniques.datasets.mixture_report import MixtureSampler, mixture_text
from dl_techniques.datasets.recipe_sources import open_folder, recipe_text
from dl_techniques.datasets.sample_reader import Shown
from dl_techniques.datasets.sources import open_source
from dl_techniques.preprocessing.messages import IMAGE_MARK
from dl_techniques.preprocessing.tokenizer import CharacterTokenizer, Tokenizer

if TYPE_CHECKING:
    from dl_techniques.datasets.vqa_dataset import VQADataProcessor

LIMIT = 1000
TOKENS = 200_000


@dataclasses.dataclass
class DataReport:
    """What is shown.

    Attributes:
        title: What was looked at.
        text: Lines for a terminal.
        groups: Heading -> samples for a page.
        processor: Encoded them.
    """

    title: str
    text: str
    groups: Mapping[str, Iterable[Shown]]
    processor: VQADataProcessor

    def html(self) -> str:
        """Return a page with the text and the samples."""
        return as_html(self.groups, self.processor, self.title, self.text)


def inspection_processor(tokenizer: Tokenizer | None) -> VQADataProcessor:
    """Return what encodes the samples.

    Args:
        tokenizer: It gets a placeholder of images; None: one token per character.
    """
    from dl_techniques.datasets.vqa_dataset import VQADataProcessor  # Which imports keras.

    own = CharacterTokenizer() if tokenizer is None else tokenizer
    (image_token_id,) = own.add_special_tokens([IMAGE_MARK])
    return VQADataProcessor(
        max_text_length=8192, tokenizer=own, image_token_id=image_token_id, tokens_per_image=64
    )


def inspect_source(
    source: str, tokenizer: Tokenizer | None = None, limit: int = LIMIT, **options: Any
) -> DataReport:
    """Look at rows that are spread over a data set, which may be sorted.

    Args:
        source: Opened by `open_source`, with the options.
        tokenizer: See `inspection_processor`.
        limit: The most rows.
        **options: Of `open_source`.
    """
    rows = open_source(source, **options)
    processor = inspection_processor(tokenizer)
    step = max(1, -(-len(rows) // limit))
    found = inspect_samples(_samples(rows, range(0, len(rows), step)), processor)
    text = f"{source}: {len(rows):,} rows; looked at one of every {step}\n{as_text(found)}"
    return DataReport(source, text, {"": found.shown}, processor)


def _samples(rows: Any, numbers: Iterable[int]) -> Iterator[Any]:
    """Yield the samples of some rows; of a bad row, its error."""
    for number in numbers:
        try:
            yield from rows[number]
        except ValueError as error:
            yield error


def inspect_mixture(
    folder: str,
    mixture: str,
    tokenizer: Tokenizer | None = None,
    tokens: int = TOKENS,
    epochs: float | None = None,
    split: str = "train",
) -> DataReport:
    """Draw samples of a mixture as a training run would, by answer tokens and by rows.

    Args:
        folder: Holds the sources; see `open_folder`.
        mixture: A recipe's name, or shares such as "vqa=0.7,text=0.3".
        tokenizer: See `inspection_processor`.
        tokens: How many answer tokens are drawn.
        epochs: How often a source may be repeated; None: without limit.
        split: Of every source.
    """
    shares = parse_shares(mixture)
    by_tokens, by_rows = (Mixture(shares, unit, epochs) for unit in ("answer_tokens", "rows"))
    processor = inspection_processor(tokenizer)
    sampler = MixtureSampler(open_folder(folder, shares, split=split), processor)
    count = sampler.draw(by_tokens, tokens)
    text = f"{mixture_text(count, sampler.draw(by_rows, tokens))}\n\n{histograms(count.found)}"
    return DataReport(f"{folder}: {mixture}", text, sampler.shown, processor)


def is_recipe(source: str) -> bool:
    """Return whether a name is a recipe's, and no file or folder is called so."""
    return source in MIXTURES and not Path(source).exists()


def inspect_recipe(name: str) -> str:
    """Return the sources and shares of a recipe as lines, and how to look at their samples."""
    return (
        f"{recipe_text(name)}\n"
        f"To look at downloaded sources: dl-techniques data inspect FOLDER --mixture {name}"
    )
