"""Accuracy against ten human answers: VQA v2 and TextVQA."""

import re
from collections.abc import Sequence

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUMBERS = {word: str(i) for i, word in enumerate((*NUMBER_WORDS, "ten"))} | {"none": "0"}
ARTICLES = {"a", "an", "the"}
AGREEING = 3  # So many other people make an answer fully right.

# Each is restored when one of its apostrophes is missing. The official table lacks "lets" and
# "shes" (so "let's" and "she's" are not here), and turns "somebody'd" the other way round.
_CONTRACTIONS = """
'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't
hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am
might've mightn't mightn't've must've mustn't needn't not've o'clock oughtn't shan't she'd've
should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're
what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're
you've
""".split()
CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word
    for word in _CONTRACTIONS
    for i, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}

_DIGITS_AND_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS = 32  # The official code hands re.UNICODE (32) over as the number of replacements.


def vqa_accuracy(prediction: str, answers: Sequence[str], always_normalise: bool = False) -> float:
    """Return the VQA accuracy: the mean over the answers of min(1, matches among the others / 3).

    With ten answers, 1, 2, 3 or more matches give 0.3, 0.6, 0.9 and 1. As in the official code,
    texts are normalised only where the answers differ: to ten times "yes", "Yes." is wrong.

    Source: GT-Vision-Lab/VQA, vqaEval.py; https://visualqa.org/evaluation.html.

    Args:
        prediction: The model's answer.
        answers: People's answers, officially ten.
        always_normalise: Normalise also where all answers are the same, as lmms-eval does.

    Raises:
        ValueError: for fewer than four answers, of which no prediction could score 1.
    """
    prediction, *answers = [_flat(text) for text in (prediction, *_checked(answers))]
    if always_normalise or len(set(answers)) > 1:
        prediction, *answers = [normalise_vqa(text) for text in (prediction, *answers)]
    return _leave_one_out(prediction, answers)


def textvqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return the accuracy of TextVQA: as `vqa_accuracy`, with EvalAI's normalisation.

    That always normalises, and before it lowers the case, drops commas and question marks and
    parts "'s" from its word.

    Source: facebookresearch/mmf, EvalAIAnswerProcessor and TextVQAAccuracyEvaluator.

    Raises:
        ValueError: as `vqa_accuracy`.
    """
    prediction, *answers = [_normalise_evalai(text) for text in (prediction, *_checked(answers))]
    return _leave_one_out(prediction, answers)


def normalise_vqa(text: str) -> str:
    """Return a text without punctuation and articles, with digits for number words."""
    loose = _DIGITS_AND_COMMA.search(text) is not None
    kept = text
    for mark in PUNCTUATION:
        beside_blank = mark + " " in text or " " + mark in text
        kept = kept.replace(mark, "" if beside_blank or loose else " ")
    kept = _PERIOD.sub("", kept, count=_PERIODS)
    words = [NUMBERS.get(word, word) for word in kept.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _normalise_evalai(text: str) -> str:
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return normalise_vqa(_flat(text))


def _flat(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _checked(answers):
    if isinstance(answers, str) or len(answers) <= AGREEING:
        raise ValueError(
            f"Expected a list of at least {AGREEING + 1} answers (the official data has ten), got "
            f"{answers!r}. For fewer answers use exact_match."
        )
    return answers


def _leave_one_out(prediction, answers):
    matches = answers.count(prediction)
    without_a_match = min(1.0, (matches - 1) / AGREEING)
    without_another = min(1.0, matches / AGREEING)
    total = matches * without_a_match + (len(answers) - matches) * without_another
    return total / len(answers)
