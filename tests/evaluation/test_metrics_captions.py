"""Captions: against pycocoevalcap's figures, the papers' examples and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_techniques.evaluation.metrics import bleu, caption_tokens, cider, cider_scores, rouge_l
from dl_techniques.evaluation.metrics.captions import bleu_counts

PREDICTIONS = [
    "a man rides a horse on the beach",
    "two dogs play in the snow",
    "a red bus",
]
REFERENCES = [
    ["a man riding a horse on a beach", "a person rides a brown horse along the beach"],
    [
        "two dogs are playing in the snow",
        "a couple of dogs play outside in the snow",
        "dogs run in snow",
    ],
    ["a plate of food on a table", "some pasta and vegetables"],
]
CAPTIONS = st.lists(st.sampled_from("a cat dog sees the".split()), min_size=1, max_size=7)


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A man, riding; a HORSE!", "a man riding a horse"),
        ("The dog's bone isn't here .", "the dog 's bone is n't here"),
        ("the dogs' two o'clock black-and-white T.V.", "the dogs two o'clock black-and-white t.v"),
        (
            'a "stop" sign (red) at 8:30 -- 3,000 cars & 2nd...',
            "a stop sign red at 8:30 3,000 cars & 2nd",
        ),
        ("can\u2019t cannot", "ca n't can not"),
        (" . ", ""),
    ],
)
def test_tokens(caption, tokens):
    assert caption_tokens(caption) == tokens.split()


def test_cider_is_that_of_pycocoevalcap():
    scores = cider_scores(PREDICTIONS, REFERENCES)
    np.testing.assert_allclose(scores, [2.79762694, 2.78489477, 0.0], atol=1e-8)
    assert cider(PREDICTIONS, REFERENCES) == pytest.approx(1.8608405684299234, abs=1e-12)


def test_a_reference_itself_scores_ten():
    captions = ["two dogs play in snow", "a red bus on a street"]
    assert cider(captions, [[caption] for caption in captions]) == pytest.approx(10.0)


def test_cider_by_hand():
    # Of one n-gram each: "cat" is in one of two pictures and weighs log 2, the cosine is 1 where
    # the words are equal; the orders 2 to 4 are empty.
    assert cider_scores(["cat", "dog"], [["cat"], ["bird"]]).tolist() == [2.5, 0.0]
    # The second "cat" does not count, but makes the vector twice as long: half the cosine.
    twice = cider_scores(["cat cat", "dog"], [["cat"], ["bird"]])[0]
    assert twice == pytest.approx(1.25 * np.exp(-1 / 72))


def test_bleu_is_that_of_pycocoevalcap():
    found = bleu(PREDICTIONS, REFERENCES)
    # It has 5e-5 where no 4-gram matches.
    expected = [0.7844203811454585, 0.6695529644234934, 0.41690576965055137, 0.0]
    np.testing.assert_allclose(list(found.values()), expected, atol=1e-9)
    assert list(found) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4"]


def test_bleu_clips_as_in_its_paper():
    cats = ["The cat is on the mat.", "There is a cat on the mat."]
    assert bleu(["the the the the the the the."], [cats])["bleu_1"] == pytest.approx(2 / 7)
    references = [
        "It is a guide to action that ensures that the military will forever heed Party commands.",
        "It is the guiding principle which guarantees the military forces always being under the "
        "command of the Party.",
        "It is the practical guide for the army always to heed the directions of the party.",
    ]
    first = (
        "It is a guide to action which ensures that the military always obeys the commands of "
        "the party."
    )
    second = "It is to insure the troops forever hearing the activity guidebook that party direct."
    for candidate, ones, twos in ((first, (17, 18), (10, 17)), (second, (8, 14), (1, 13))):
        counts = bleu_counts(candidate, references)
        assert tuple(counts[[0, 4]]) == ones and tuple(counts[[1, 5]]) == twos


def test_bleu_is_less_for_short_captions():
    assert bleu(["a b"], [["a b c d"]])["bleu_1"] == pytest.approx(np.exp(1 - 4 / 2))
    # 3 is as near to 4 as 5 is: the shorter counts.
    assert bleu_counts("a b c d", ["a b c d e", "a b c"])[-1] == 3
    assert set(bleu([""], [["a b"]]).values()) == {0.0}


def test_rouge_l():
    ours = [rouge_l(*pair) for pair in zip(PREDICTIONS, REFERENCES, strict=True)]
    np.testing.assert_allclose(ours, [0.75, 0.782051282051282, 0.18654434250764526], atol=1e-12)
    # The paper's example.
    assert rouge_l("police kill the gunman", ["police killed the gunman"]) == pytest.approx(0.75)
    assert rouge_l("the gunman kill police", ["police killed the gunman"]) == pytest.approx(0.5)
    assert rouge_l("", ["a"]) == 0.0


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(CAPTIONS, st.lists(CAPTIONS, min_size=1, max_size=3)), min_size=2, max_size=5
    ),
    st.randoms(),
)
def test_captions_have_no_order(pairs, random):
    texts = [(" ".join(own), [" ".join(ref) for ref in refs]) for own, refs in pairs]
    mixed = [(own, random.sample(refs, len(refs))) for own, refs in texts]
    mixed = random.sample(mixed, len(mixed))
    assert cider(*zip(*texts, strict=True)) == pytest.approx(cider(*zip(*mixed, strict=True)))
    assert bleu(*zip(*texts, strict=True)) == pytest.approx(bleu(*zip(*mixed, strict=True)))
    assert (cider_scores(*zip(*texts, strict=True)) <= 10 + 1e-9).all()
    assert all(0.0 <= rouge_l(own, refs) <= 1.0 + 1e-12 for own, refs in texts)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda: cider(["a"], [["a"]]), "at least two"),
        (lambda: cider(["a", "b"], [["a"], []]), r"caption 1, got \[\]"),
        (lambda: bleu(["a"], ["a"]), "list of references for caption 0"),
        (lambda: rouge_l("a", []), "list of references"),
        (lambda: bleu([], []), "at least 1"),
    ],
)
def test_errors_name_what_is_wrong(score, message):
    with pytest.raises(ValueError, match=message):
        score()
