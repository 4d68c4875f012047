"""Multiple choice: the letter that an answer names, by rule or by likelihood."""

import random
import re
from collections.abc import Sequence

import numpy as np

from dl_techniques.evaluation.metrics.matching import canonical

# Not one of several letters, as in "B or C", "(A) and (B)" and "B, C".
_ALONE = (
    r"(?i:(?!\s*(?:[,/&]\s*|\b(?:or|and)\s+)+"
    r"(?:\(\s*[a-z]\s*\)|[b-hj-z]\b|[ai](?=\s*(?:[).:,;!]|$)))))"
)
# A letter with or without its marks, before a text or at a line's end: "(B)", "B.", "B) a cat".
_MARKED = r"(?:\(\s*([A-Z])\s*\)|\b([A-Z])(?=[).:](?:\s|$)|\s*[.!]?\s*$))"
# A letter in the midst of a sentence. "A" and "I" may be words: more must tell them from these.
_WITHIN = (
    r"(?:\b([A-Z])(?=[,;](?:\s|$))|\b(?-i:([B-HJ-Z]))(?=\s)"
    r"|\b(?-i:(A))(?=\s+(?:is|because|since|as)\b))"
    r"(?!\s+(?:is|was|does|can|would)\s*(?:not|n['’]t|wrong|incorrect|false)\b)"
)
_IS = r"(?:\s+(?:is|would\s+be)\s*:?|\s*:)"
_STATED = re.compile(
    rf"\b(?:(?:answer\b{_IS}?|(?:choice|option)\b{_IS})\s*(?:{_MARKED}|{_WITHIN})"
    rf"|(?:choice|option)\s+{_MARKED}){_ALONE}",
    re.IGNORECASE | re.MULTILINE,
)
# "Option B shows a cat" chooses B where nothing else is chosen.
_MENTIONED = re.compile(rf"\b(?:choice|option)\s+{_WITHIN}{_ALONE}", re.IGNORECASE | re.MULTILINE)
_WHOLE = re.compile(r"\(?\s*([A-Za-z])\s*[).:]?")
_LEADING = re.compile(rf"(?:\(\s*([A-Za-z])\s*\)|([A-Za-z])[).:](?=\s)|([A-HJ-Z])(?=,\s){_ALONE})")
_BRACKETED = re.compile(r"\(\s*([A-Z])\s*\)")
_MMSTAR = re.compile(r"(?:\(|option |the answer is )?(.)", re.DOTALL)
_MMMU_ENDS = (",", ".", "!", "?", ";", ":", "'")


def choice_letter(text: str) -> str | None:
    """Return the letter that an answer chooses, in upper case; None if it chooses none, or several.

    In this order: a letter alone; letters after "answer", "choice" or "option"; a letter with a
    mark that begins the text, letters alone on a line, and letters in brackets. The words "A" and
    "I" are no choices, as in "A cat" and "The answer is a cat". "Option B shows a cat" counts where
    no letter begins the text or has a line.
    """
    text = text.strip().replace("*", "")
    if found := _WHOLE.fullmatch(text):
        return found[1].upper()
    letters = _letters(_STATED, text)
    if not letters:
        starts = [
            _LEADING.match(text),
            *(_WHOLE.fullmatch(line.strip()) for line in text.splitlines()),
        ]
        marked = {_letter(found) for found in starts if found}
        letters = _letters(_BRACKETED, text) | (marked or _letters(_MENTIONED, text))
    return letters.pop() if len(letters) == 1 else None


def option_letter(text: str, options: Sequence[str]) -> str | None:
    """Return the letter of the option that an answer chooses, None if it chooses none, or several.

    The letter as `choice_letter` finds it; else the only option whose text occurs in the answer
    as whole words (of options within others, the longer). No letter is ever guessed.

    Args:
        text: The model's answer.
        options: The texts of A, B, ...

    Raises:
        ValueError: if there are fewer than two options, or more than 26.
    """
    letters = letters_of(options)
    named = choice_letter(text)
    if named in letters:
        return named
    said, plain = canonical(text), [canonical(option) for option in options]
    within = [o for o in plain if o and re.search(rf"(?<!\w){re.escape(o)}(?!\w)", said)]
    within = [o for o in within if not any(o != other and o in other for other in within)]
    found = [letter for letter, option in zip(letters, plain, strict=True) if option in within]
    return found[0] if len(found) == 1 else None


def choice_accuracy(prediction: str, answer: str, options: Sequence[str] = ()) -> float:
    """Return 1.0 if the prediction chooses the letter `answer`: ScienceQA, AI2D, SEED, MMBench.

    Source: lmms-eval takes a first letter ("A" and "A. ..."); VLMEvalKit's can_infer also reads
    the options' texts. This takes what both accept, and nothing by chance.

    Args:
        prediction: The model's answer.
        answer: The right letter.
        options: The texts of A, B, ..., which an answer may name instead.

    Raises:
        ValueError: if the answer is not a letter of the options.
    """
    answer = checked_letter(answer, letters_of(options) if options else None)
    chosen = option_letter(prediction, options) if options else choice_letter(prediction)
    return float(chosen == answer)


def mmstar_accuracy(prediction: str, answer: str) -> float:
    """Return 1.0 if the letter `answer` begins the prediction.

    It may stand after "(", "option " or "the answer is "; what follows does not count, so that
    "A dog" chooses A.

    Source: MMStar-Benchmark/MMStar, eval/vlmeval/evaluate/mmstar.py. The published score is the
    mean over all 1,500 questions.

    Raises:
        ValueError: if the answer is not a letter.
    """
    answer = checked_letter(answer).lower()
    text = prediction.lower().strip().replace("\n", " ")
    found = _MMSTAR.match(text)
    return float(text[:1] == answer or (found is not None and found[1] == answer))


def mmmu_choice(prediction: str, options: Sequence[str], seed: int | str = 0) -> str:
    """Return the letter that a prediction chooses by MMMU's rules, if need be by chance.

    First "(A)", then "A " (also within a word), then "A."; then, in more than five words, the
    text of an option; several: the last. Otherwise a letter is drawn.

    Source: MMMU-Benchmark/MMMU, eval/eval_utils.py, parse_multi_choice_response.

    Args:
        prediction: The model's answer.
        options: The texts of A, B, ...
        seed: Decides what is drawn; give each question its own (such as its id).

    Raises:
        ValueError: if there are fewer than two options, or more than 26.
    """
    letters = letters_of(options)
    for mark in _MMMU_ENDS:
        prediction = prediction.strip(mark)
    text = f" {prediction} "
    # How a letter is found, and the place by which the last of several is chosen.
    for found_as, placed_as in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        places = {c: text.rfind(placed_as.format(c)) for c in letters if found_as.format(c) in text}
        if places:
            return max(places, key=places.get)
    if len(text.split()) > 5:
        lowered = [option.lower() for option in options]
        pairs = zip(letters, lowered, strict=True)
        places = {c: text.lower().rfind(option) for c, option in pairs if option in text.lower()}
        if places:
            return max(places, key=places.get)
    return random.Random(f"{seed}").choice(letters)


def mmmu_accuracy(
    prediction: str, answer: str, options: Sequence[str], seed: int | str = 0
) -> float:
    """Return 1.0 if `mmmu_choice` gives the letter `answer`.

    Raises:
        ValueError: if the answer is not a letter of the options.
    """
    answer = checked_letter(answer, letters_of(options))
    return float(mmmu_choice(prediction, options, seed) == answer)


def likeliest_choice(log_likelihoods: Sequence[float], lengths: Sequence[int] | None = None) -> int:
    """Return the index of the likeliest option; of equal ones the first.

    Args:
        log_likelihoods: Of each option's text after the prompt.
        lengths: Divide by these (tokens or bytes of each text), so that short options are not
            favoured.

    Raises:
        ValueError: for no option, a value that is no number, or lengths that do not fit.
    """
    scores = np.asarray(log_likelihoods, "float64")
    if scores.ndim != 1 or not scores.size or np.isnan(scores).any():
        raise ValueError(f"Expected a log-likelihood per option, got {log_likelihoods!r}.")
    if lengths is not None:
        divisors = np.asarray(lengths, "float64")
        if divisors.shape != scores.shape or (divisors <= 0).any():
            raise ValueError(f"Expected {scores.size} positive lengths, got {lengths!r}.")
        scores = scores / divisors
    return int(scores.argmax())


def letters_of(options: Sequence[str]) -> list[str]:
    """Return "A", "B", ... for each option.

    Raises:
        ValueError: if there are fewer than two options, or more than 26.
    """
    if isinstance(options, str) or not 2 <= len(options) <= 26:
        raise ValueError(f"Expected a list of 2 to 26 options, got {options!r:.200}.")
    return [chr(ord("A") + i) for i in range(len(options))]


def checked_letter(answer: str, letters: Sequence[str] | None = None) -> str:
    """Return a right answer's letter in upper case.

    Raises:
        ValueError: if it is none, or none of `letters`.
    """
    letter = answer.strip().upper()
    if not re.fullmatch("[A-Z]", letter) or (letters is not None and letter not in letters):
        expected = "a letter" if letters is None else f"one of {', '.join(letters)}"
        raise ValueError(f"The right answer of a multiple choice is {expected}, not {answer!r}.")
    return letter


def _letters(pattern, text) -> set[str]:
    return {_letter(found) for found in pattern.finditer(text)}


def _letter(found) -> str:
    return next(group for group in found.groups() if group).upper()
