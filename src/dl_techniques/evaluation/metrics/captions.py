"""Captions against several references: CIDEr-D, BLEU and ROUGE-L.

Own implementations: the official packages need Java for their tokenizer, and the pip package of
them carries 100 MB of it. Given the same tokens, the figures are those of pycocoevalcap.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from dl_techniques.evaluation.metrics.matching import same_length

ORDERS = 4  # n-grams of 1 to 4 words.
SIGMA = 6.0  # Of CIDEr-D's penalty on lengths.
BETA = 1.2  # Of ROUGE-L: how much more recall weighs than precision.

_CLITICS = re.compile(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll)|')(?!\w)")
# Clitics, numbers such as 8:30, words with marks inside, other marks.
_TOKENS = re.compile(
    r"n't|'(?:s|m|d|re|ve|ll)(?!\w)|\d+(?:[.,:]\d+)+(?!\w)|\w+(?:[-'./&]\w+)*|[^\w\s]"
)
_DROPPED = set("'`.?!,:-;\"()[]{}")


def caption_tokens(caption: str) -> list[str]:
    """Return the words of a caption in lower case, without punctuation.

    As the official PTB tokenizer does, "don't" is "do", "n't" and "dog's" is "dog", "'s", while
    "black-and-white" stays whole. Abbreviations lose their last period here.
    """
    text = re.sub("[\u2018\u2019]", "'", caption.lower()).replace("cannot", "can not")
    return [word for word in _TOKENS.findall(_CLITICS.sub(r" \1 ", text)) if word not in _DROPPED]


def cider_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Return float64[N]: CIDEr-D of each caption; 1.0 is published as 100, the most is 10.

    How much an n-gram weighs depends on how many of the N pictures' references have it.

    Source: https://arxiv.org/abs/1411.5726, section 4 (CIDEr-D); pycocoevalcap/cider, which
    measures the difference of lengths in bigrams.

    Args:
        predictions: One caption a picture.
        references: The captions of people for each picture.

    Raises:
        ValueError: for fewer than two pictures (one has no rare words), or one without references.
    """
    hypotheses, wanted = _tokenised(predictions, references)
    if len(wanted) < 2:
        raise ValueError("CIDEr compares pictures: it needs at least two, got one.")
    counts = [[_ngrams(words) for words in group] for group in wanted]
    frequency = Counter(gram for group in counts for gram in set().union(*group))
    log_pictures = np.log(len(counts))

    def vector(grams):
        """Return the weights of each order's n-grams, their norms and the number of bigrams."""
        weights = [{} for _ in range(ORDERS)]
        for gram, count in grams.items():
            rarity = log_pictures - np.log(max(1, frequency[gram]))
            weights[len(gram) - 1][gram] = count * rarity
        norms = [np.sqrt(sum(w * w for w in order.values())) for order in weights]
        return weights, norms, sum(count for gram, count in grams.items() if len(gram) == 2)

    scores = []
    for words, group in zip(hypotheses, counts, strict=True):
        own = vector(_ngrams(words))
        scores.append(np.mean([_similarity(own, vector(grams)) for grams in group]))
    return 10.0 * np.array(scores)


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the mean of `cider_scores`."""
    return float(cider_scores(predictions, references).mean())


def bleu_counts(prediction: str, references: Sequence[str]) -> np.ndarray:
    """Return float64[10]: what BLEU adds up over pictures.

    Matches of 1- to 4-grams, n-grams of each order, words of the caption, and of the reference
    that is nearest in length.

    Raises:
        ValueError: if there is no reference.
    """
    (words,), (wanted,) = _tokenised([prediction], [references])
    most = Counter()
    for reference in wanted:
        most |= _ngrams(reference)
    matches, totals = np.zeros(ORDERS), np.zeros(ORDERS)
    for gram, count in _ngrams(words).items():
        matches[len(gram) - 1] += min(count, most[gram])
        totals[len(gram) - 1] += count
    lengths = [len(reference) for reference in wanted]
    nearest = min(lengths, key=lambda length: (abs(length - len(words)), length))
    return np.array([*matches, *totals, len(words), nearest])


def bleu_from_counts(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return `bleu_1` to `bleu_4`, each float[...], of sums[..., 10] of `bleu_counts`."""
    counts = np.asarray(counts, "float64")
    matches, totals = counts[..., :ORDERS], counts[..., ORDERS : 2 * ORDERS]
    own, wanted = counts[..., -2], counts[..., -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        precisions = np.where(matches > 0, matches / totals, 0.0)
        means = np.exp(np.cumsum(np.log(precisions), axis=-1) / np.arange(1, ORDERS + 1))
        brevity = np.where(own > 0, np.exp(np.minimum(0.0, 1.0 - wanted / own)), 0.0)
    return {f"bleu_{n + 1}": means[..., n] * brevity for n in range(ORDERS)}


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return `bleu_1` to `bleu_4` of all captions together.

    Source: https://aclanthology.org/P02-1040; pycocoevalcap/bleu (nearest reference length).

    Args:
        predictions: One caption a picture.
        references: The captions of people for each picture.

    Raises:
        ValueError: if there are no captions, or a picture has no reference.
    """
    same_length(predictions, references)
    pairs = zip(predictions, references, strict=True)
    counts = np.sum([bleu_counts(*pair) for pair in pairs], axis=0)
    return {name: float(value) for name, value in bleu_from_counts(counts).items()}


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """Return ROUGE-L: the F-measure of the longest common subsequence of words.

    Precision and recall are each the best over the references.

    Source: https://aclanthology.org/W04-1013; pycocoevalcap/rouge.

    Raises:
        ValueError: if there is no reference.
    """
    (words,), (wanted,) = _tokenised([prediction], [references])
    common = [_longest_common(words, reference) for reference in wanted]
    if not any(common):
        return 0.0
    precision = max(common) / len(words)
    recall = max(n / len(ref) for n, ref in zip(common, wanted, strict=True) if ref)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _tokenised(predictions, references):
    same_length(predictions, references)
    for number, group in enumerate(references):
        if isinstance(group, str) or not len(group):
            raise ValueError(f"Expected a list of references for caption {number}, got {group!r}.")
    return (
        [caption_tokens(text) for text in predictions],
        [[caption_tokens(text) for text in group] for group in references],
    )


def _ngrams(words: list[str]) -> Counter:
    return Counter(
        tuple(words[i : i + n]) for n in range(1, ORDERS + 1) for i in range(len(words) - n + 1)
    )


def _similarity(own, other) -> float:
    """Return the mean over n of the clipped cosines, less for captions of other lengths."""
    (weights, norms, length), (wanted, wanted_norms, wanted_length) = own, other
    cosines = np.zeros(ORDERS)
    for n in range(ORDERS):
        for gram, weight in weights[n].items():
            other_weight = wanted[n].get(gram, 0.0)
            cosines[n] += min(weight, other_weight) * other_weight
        if norms[n] and wanted_norms[n]:
            cosines[n] /= norms[n] * wanted_norms[n]
    return cosines.mean() * np.exp(-((length - wanted_length) ** 2) / (2 * SIGMA**2))


def _longest_common(a: list[str], b: list[str]) -> int:
    row = [0] * (len(b) + 1)
    for left in a:
        diagonal = 0
        for j, right in enumerate(b, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if left == right else max(row[j], row[j - 1])
    return row[-1]
