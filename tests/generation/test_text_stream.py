"""The pieces of a stream, joined, are the whole text; none of it is ever taken back."""

import numpy as np
import pytest

from dl_techniques.generation.text_stream import TextStream

END = 256


def decode(ids):
    """Byte-level tokens: a character may need several; what is incomplete shows as U+FFFD."""
    return bytes(ids).decode("utf-8", errors="replace")


def pieces_of(text, stop_ids=(), stop_strings=(), end=True, width=1):
    """Return the pieces for a text that comes as `width` bytes at a time."""
    ids = list(text if isinstance(text, bytes) else text.encode())
    stream = TextStream(decode, stop_ids, stop_strings)
    pieces = [stream.push(ids[i : i + width]) for i in range(0, len(ids), width)]
    pieces.append(stream.push([END]) if end and stop_ids else stream.finish())
    assert "".join(pieces) == stream.text and stream.ended
    return pieces


@pytest.mark.parametrize("width", [1, 2, 3, 100])
@pytest.mark.parametrize("stop_ids", [(), (END,)])
def test_no_character_is_broken(stop_ids, width):
    text = "a😀é漢字👩‍👧 b\N{REPLACEMENT CHARACTER}c"
    pieces = pieces_of(text, stop_ids, width=width)
    assert "".join(pieces) == text
    for piece in pieces:
        assert piece.count("\N{REPLACEMENT CHARACTER}") == piece.count("\N{REPLACEMENT CHARACTER}c")


def test_a_character_comes_with_its_last_byte():
    pieces = pieces_of("a😀b")
    assert pieces == ["a", "", "", "", "😀", "b", ""]


def test_bytes_that_never_become_a_character_are_shown_at_the_end():
    assert pieces_of(b"a\xf0\x9f") == ["a", "", "", "\N{REPLACEMENT CHARACTER}"]
    assert pieces_of(b"a\xf0\x9f", stop_ids=[END])[-1] == "\N{REPLACEMENT CHARACTER}"


def test_blanks_around_the_answer_are_left_out():
    pieces = pieces_of(" \n one  two \n", stop_ids=[END])
    assert "".join(pieces) == "one  two"
    assert pieces[:4] == ["", "", "", "o"] and pieces[-1] == ""
    # Blanks come with what follows them.
    assert "  t" in pieces
    assert "".join(pieces_of("   ")) == ""


def test_nothing_follows_a_stop_id():
    stream = TextStream(decode, [END, 7])
    assert stream.push([*b"ab", 7, *b"cd"]) == "ab"
    assert stream.ended and stream.length == 3 and stream.text == "ab"
    assert stream.push(b"more") == "" and stream.finish() == "" and stream.length == 3
    empty = TextStream(decode, [END])
    assert empty.push([END]) == "" and empty.ended and empty.length == 1


def test_nothing_of_a_stop_string_is_shown():
    pieces = pieces_of("yes. Question: no", stop_strings=["Question:"])
    assert "".join(pieces) == "yes."
    assert pieces[:5] == ["y", "e", "s", ".", ""]
    # What only began like one is given as soon as it is certain.
    pieces = pieces_of("a Quest b", stop_strings=["Question:"])
    assert "".join(pieces) == "a Quest b"
    assert pieces[2:7] == [""] * 5 and pieces[7:9] == [" Quest", " b"]
    # At the end it is certain too.
    assert "".join(pieces_of("a Ques", stop_strings=["Question:"])) == "a Ques"
    assert "".join(pieces_of("a Ques", [END], ["Question:"])) == "a Ques"


@pytest.mark.parametrize("stops", [(), ["no such"]])
def test_tokens_whose_text_depends_on_the_one_before(stops):
    words = [" a", " b", "c", " d"]

    def without_blank(ids):  # As SentencePiece, whose texts begin without a blank.
        return "".join(words[token] for token in ids).removeprefix(" ")

    stream = TextStream(without_blank, (), stops)
    pieces = [stream.push([token]) for token in (0, 1, 2, 3, 0)]
    assert pieces == ["a", " b", "c", " d", " a"]
    together = TextStream(without_blank, (), stops)
    assert together.push([0, 1, 2]) + together.push([3]) + together.push([0]) == "a bc d a"
    stopped = TextStream(without_blank, (), ["b a"])
    assert [stopped.push([token]) for token in (0, 1, 0)] == ["a", "", ""] and stopped.ended


def test_length_is_that_of_the_ids_up_to_the_stop_string():
    stream = TextStream(decode, (), ["cd"])
    stream.push(b"abcdef")
    assert stream.ended and stream.length == 4 and stream.text == "ab"


def earliest_stop(text, stops):
    """Return the text before the stop string that is complete first (of several the longest)."""
    for end in range(1, len(text) + 1):
        whole = [stop for stop in stops if text[:end].endswith(stop)]
        if whole:
            return text[: end - max(map(len, whole))]
    return text


def test_pieces_are_the_whole_text_for_random_texts_and_stops():
    generator = np.random.default_rng(0)
    for _ in range(400):
        text = "".join(generator.choice(list("aab é"), generator.integers(0, 14)))
        stops = [
            "".join(generator.choice(list("abé"), generator.integers(1, 4)))
            for _ in range(generator.integers(0, 3))
        ]
        pieces = pieces_of(text, stop_strings=stops, width=int(generator.integers(1, 4)))
        assert "".join(pieces) == earliest_stop(text, stops).strip(), (text, stops)
