"""Tiles and their markers among the ids of a conversation."""

import pytest
from test_chat_template import BOS, END, IMAGE, NO, START, USER, YES, assistant, check, user

from dl_techniques.preprocessing.chat_template import (
    CHATML,
    QUESTION_ANSWER,
    encode_conversation,
)


def tiled(image, number, count):
    """Two tiles with markers, special ones and text, that say which image it is."""
    return ("<|im_start|>", f"<{number + 1}/{count}>", 0, "\n", 1, "<|im_end|>", " end")


def test_an_image_layout_places_tiles_and_markers(byte_tokenizer):
    messages = [user("a<|image|>b", images=["x"]), assistant("c"), user("d", images=["y"])]
    options = {"image_token_id": IMAGE, "tokens_per_image": 2, "image_layout": tiled}
    encoded = encode_conversation(messages, byte_tokenizer, CHATML, **options)

    def shown(label, after):
        first = [*label, IMAGE, IMAGE, 10, IMAGE, IMAGE]
        return [START, *first, END, *b" end", *after]

    check(
        encoded,
        ([START, USER, 10, *b"a", *shown(b"<1/2>", b"b"), END, 10], NO),
        ([START, *b"assistant\n"], NO),
        ([*b"c", END], YES),
        ([10, START, USER, 10, *shown(b"<2/2>", b"d"), END, 10], NO),
    )
    assert (encoded.images, encoded.tiles) == (["x", "y"], [2, 2])


def test_markers_that_are_text_are_tokenized_with_the_text_beside_them(byte_tokenizer):
    layout = {"image_layout": lambda image, number, count: (0, "us")}
    encoded = encode_conversation(
        [user("er", image="x")],
        byte_tokenizer,
        QUESTION_ANSWER,
        image_token_id=IMAGE,
        tokens_per_image=1,
        **layout,
    )
    assert encoded.token_ids == [BOS, IMAGE, 257, *b"Question: er Answer:"]
    joined = encode_conversation(
        [user("er", image="x")],
        byte_tokenizer,
        CHATML,
        image_token_id=IMAGE,
        tokens_per_image=1,
        **layout,
    )
    assert joined.token_ids == [START, USER, 10, IMAGE, USER, END, 10]


def test_without_a_placeholder_only_the_markers_of_a_layout_stay(byte_tokenizer):
    encoded = encode_conversation(
        [user("q", image="x")], byte_tokenizer, CHATML, image_layout=tiled
    )
    assert byte_tokenizer.decode(encoded.token_ids) == (
        "<|im_start|>user\n<|im_start|><1/1>\n<|im_end|> endq<|im_end|>\n"
    )
    assert encoded.tiles == [2]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ((), r"image 0 must have its tiles 0, 1, .* got \(\)"),
        (("<x>",), "must have its tiles"),
        ((1, 0), "must have its tiles"),
        ((0, 0), "must have its tiles"),
        ((1,), "must have its tiles"),
        ((0, None), "must have its tiles"),
        ((0, "<|image|>"), "placeholder '<|image|>' as a marker"),
    ],
)
def test_layouts_that_cannot_be(byte_tokenizer, layout, message):
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        encode_conversation(
            [user("q", image="x")],
            byte_tokenizer,
            CHATML,
            image_token_id=IMAGE,
            tokens_per_image=1,
            image_layout=lambda *_: layout,
        )
