import numpy as np
import pytest
from test_vqa_dataset import picture, processor, rows_of, sample

from dl_techniques.datasets.isolated_turns import join_isolated

pytestmark = pytest.mark.no_backend

START = "<##question: "


def isolated(samples, length=128, **options):
    dataset = processor(length).create_dataset(
        samples, 1, shuffle=False, isolate_turns=True, bucket=1, **options
    )
    return dataset, rows_of(dataset), [dataset[k][0]["turn_ids"][0] for k in range(len(dataset))]


def digits(turn_ids):
    return "".join(map(str, turn_ids))


def test_row_by_hand():
    turns = [("is x?", "1"), ("what?", "no"), ("is y?", "2")]
    dataset, rows, turn_ids = isolated([sample("a", turns, [picture(9)])])
    rests = ["is x? answer: 1>", "what? answer: no>", "is y? answer: 2>"]
    assert rows == [START + "".join(rests)]
    expected = "0" * len(START) + "".join(
        str(k) * len(rest) for k, rest in enumerate(rests, start=1)
    )
    assert digits(turn_ids[0])[: len(expected)] == expected
    inputs, labels = dataset[0]
    apart = [processor().process(sample("a", [turn], [picture(9)])) for turn in turns]
    for k, alone in enumerate(apart, start=1):
        seen = (inputs["turn_ids"][0] == k) | (np.arange(labels.shape[1]) < len(START))
        np.testing.assert_array_equal(inputs["text_tokens"][0, seen], alone["text_tokens"])
        np.testing.assert_array_equal(labels[0, seen], alone["labels"])


def test_supervised_tokens_are_those_of_the_turns_apart():
    samples = [sample("a", [(f"q{k}", f"a{k}") for k in range(5)], [picture(9)])]
    together, _, _ = isolated(samples)
    apart = processor().create_dataset(samples, 1, max_turns=1)
    assert (len(together.rows), len(apart.rows)) == (1, 5)
    assert together.supervised_tokens == apart.supervised_tokens


def test_rows_are_cut_by_length_and_by_turns():
    samples = [sample("a", [(f"q{k}", f"a{k}") for k in range(4)], [picture(9)])]
    one, more = len(START + "q0 answer: a0>"), len("0 answer: a0>")
    # All questions begin with "q", which is shared too.
    _, rows, _ = isolated(samples, length=one + more)
    assert rows == [START + "q0 answer: a0>1 answer: a1>", START + "q2 answer: a2>3 answer: a3>"]
    _, rows, _ = isolated(samples, max_turns=3)
    assert [row.count("answer") for row in rows] == [3, 1]
    with pytest.raises(ValueError, match=f"A turn has {one} tokens"):
        isolated(samples, length=one - 1)


def test_a_new_image_begins_a_new_row_with_all_images_so_far():
    messages = []
    for k in range(3):
        images = [] if k == 1 else [{"type": "image", "image": picture(k)}]
        messages += [
            {"role": "user", "content": [*images, {"type": "text", "text": f"q{k}"}]},
            {"role": "assistant", "content": "a"},
        ]
    dataset, rows, _ = isolated([{"id": "a", "images": [], "messages": messages}])
    assert rows == [
        START + "q0 answer: a>1 answer: a>",
        "<####question: q2 answer: a>",
    ]
    assert [dataset[k][0]["num_images"][0] for k in range(2)] == [1, 2]


def test_an_image_inside_a_question_stays_there_and_that_question_alone():
    turns = [("see <|image|> here", "1"), ("x", "2"), ("y", "3")]
    _, rows, _ = isolated([sample("a", turns, [picture(1)])])
    assert rows[0] == "<question: see ## here answer: 1>"
    assert rows[1] == START + "x answer: 2>y answer: 3>"


def test_an_order_of_isolated_turns_is_refused():
    with pytest.raises(ValueError, match="have no order"):
        isolated([sample("a", [("x", "y")])], shuffle_turns=True)


def test_nothing_learned_is_shared():
    turn = (np.arange(4), np.array([-100, -100, 2, 3]))
    (ids, labels), turn_ids = join_isolated([turn, turn])
    assert ids.tolist() == [0, 1, 2, 3, 2, 3] and turn_ids.tolist() == [0, 0, 1, 1, 2, 2]
    assert (labels != -100).sum() == 4
