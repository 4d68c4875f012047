"""Free answers of MMMU and MathVista: the number or text that a reply gives."""

import re
from collections.abc import Sequence

from dl_techniques.evaluation.metrics.choices import letters_of
from dl_techniques.evaluation.metrics.matching import answer_list, edit_distance

_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_SENTENCES = re.compile(r"\.\s(?=[A-Z])|\n")
_MMMU_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
_QUOTED = re.compile(r'[Tt]he answer is "(.*)"\.')
_STATED = re.compile(r"answer(?: is|:)\s*(.+)", re.IGNORECASE | re.DOTALL)
_BRACKETED = re.compile(r"\(([A-Za-z])\)")
_LIST = re.compile(r"\[[^\[\]]*\]")


def mmmu_open_accuracy(prediction: str, answers: str | Sequence[str]) -> float:
    """Return 1.0 if an answer's text occurs in a key part of a reply, or its number equals one.

    Key parts are the ends of sentences after words such as "is" or "therefore". Numbers are
    compared with two decimals.

    Source: MMMU-Benchmark/MMMU, eval/eval_utils.py, parse_open_response and eval_open.

    Raises:
        ValueError: if there is no answer.
    """
    wanted = [form for answer in answer_list(answers) for form in _forms(answer)]
    parts = _key_parts(prediction)
    numbers = [n for part in parts for pattern in _MMMU_NUMBERS for n in pattern.findall(part)]
    for form in [form for text in parts + numbers for form in _forms(text)]:
        texts = [w for w in wanted if isinstance(w, str)]
        if form in wanted if isinstance(form, float) else any(text in form for text in texts):
            return 1.0
    return 0.0


def _key_parts(reply: str) -> list[str]:
    # The reply is lowered first, as in the official code, so that it parts at line breaks only.
    sentences = _SENTENCES.split(reply.strip().strip(".").lower())
    parts = []
    for number, sentence in enumerate(sentences, start=1):
        marks = (*_INDICATORS, "=") if number == len(sentences) else _INDICATORS
        ends = [sentence.split(mark)[-1].strip() for mark in marks if mark in sentence]
        # An end that is empty is replaced by the next one.
        shortest = ""
        for end in ends:
            if not shortest or len(end) < len(shortest):
                shortest = end
        if shortest and shortest not in (":", ",", ".", "!", "?", ";", "'"):
            parts.append(shortest)
    return parts or [reply.strip().strip(".").lower()]


def _forms(text: str) -> list[str | float]:
    text = text.strip()
    number = _float(text)
    if number is not None:
        return [round(number, 2)]
    text = text.lower()
    # A lone letter would occur in almost any text.
    return [" " + text, text + " "] if len(text) == 1 else [text]


def mathvista_answer(
    prediction: str, answer_type: str, choices: Sequence[str] = (), precision: int | None = None
) -> str | None:
    """Return the answer in a reply to MathVista, written as its answers are; None if there is none.

    The official evaluation lets GPT-4 read it from the reply; here rules do: what stands in
    quotes or after "answer is", then with choices the letter in brackets or the choice that is
    nearest in edit distance, of numbers the last one, of lists the last one in brackets. The
    rounding is the official one.

    Source: lupantech/MathVista, evaluation/extract_answer.py and calculate_score.py.

    Args:
        prediction: The model's answer.
        answer_type: "integer", "float", "list" or "text".
        choices: The options' texts of a multiple choice, whose letter or text is named.
        precision: Decimals of a float.

    Raises:
        ValueError: for an unknown type, or a float without its precision.
    """
    text = prediction.strip()
    if choices:
        return _choice(text, choices)
    if answer_type not in ("integer", "float", "list", "text"):
        raise ValueError(
            f"An answer of MathVista is an integer, float, list or text, not {answer_type!r}."
        )
    if answer_type == "float" and precision is None:
        raise ValueError("A float of MathVista comes with the number of its decimals: precision.")
    stated = _stated(text)
    if answer_type == "text":
        return stated.strip(' ."') or None
    if answer_type == "list":
        lists = _LIST.findall(stated) or _LIST.findall(text)
        return lists[-1] if lists else None
    # A stated answer begins with its number; otherwise it comes at the end.
    numbers = _NUMBER.findall(stated)[:1] if stated != text else []
    numbers = numbers or _NUMBER.findall(text)[-1:]
    if not numbers:
        return None
    number = float(numbers[0].replace(",", ""))
    return str(int(number)) if answer_type == "integer" else str(round(number, precision))


def mathvista_accuracy(
    prediction: str,
    answer: str,
    answer_type: str,
    choices: Sequence[str] = (),
    precision: int | None = None,
) -> float:
    """Return 1.0 if `mathvista_answer` gives the answer.

    Raises:
        ValueError: as `mathvista_answer`, or if the answer is none of the choices.
    """
    if choices and answer not in choices:
        raise ValueError(f"The answer {answer!r} is none of the choices {list(choices)}.")
    found = mathvista_answer(prediction, answer_type, choices, precision)
    return float(found is not None and found.strip() == answer.strip())


def _stated(text: str) -> str:
    found = _QUOTED.search(text)
    if found is None:
        found = next(iter(list(_STATED.finditer(text))[-1:]), None)
    return text if found is None else found[1].strip()


def _choice(text: str, choices: Sequence[str]) -> str | None:
    letters = letters_of(choices)
    if not text or text in choices:
        return text or None
    stated = _stated(text)
    bracketed = _BRACKETED.search(stated)
    letter = bracketed[1].upper() if bracketed else stated.strip(" .:*)").upper()
    if letter in letters:
        return choices[letters.index(letter)]
    return min(choices, key=lambda choice: edit_distance(stated, choice))


def _float(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None
