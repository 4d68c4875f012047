"""What mixtures give: the shares by answer tokens and by rows, and what is left out."""

import re

import pytest
from inspected_samples import LENGTH, answers, draw, png, processor, sample

from dl_techniques.datasets.inspect_command import inspection_processor
from dl_techniques.datasets.mixture import Mixture
from dl_techniques.datasets.mixture_report import MixtureSampler, mixture_text
from dl_techniques.datasets.planning import Planner
from dl_techniques.datasets.recipe_sources import open_folder
from dl_techniques.datasets.rows import RowEncoder
from dl_techniques.datasets.sources import StreamingSource
from dl_techniques.preprocessing.tokenizer import load_tokenizer

pytestmark = pytest.mark.no_backend

TABLE = """\
                |             by answer tokens              |                 by rows
source   target |  tokens    rows    mean   samples  epochs |  tokens    rows    mean   samples  epochs
short     50.0% |   50.0%   90.9%     3.0        20    2.00 |    9.1%   50.0%     3.0         4    0.40
long      50.0% |   50.0%    9.1%    30.0         2    0.50 |   90.9%   50.0%    30.0         4    1.00
tokens, rows: shares of the answer tokens, and of the samples with any; mean: answer tokens of these.
Drawn: 120 answer tokens in 22 samples; by rows 132 in 8.

0 of 22 samples were left out
Beware: one sample of long has 30 answer tokens, 25% of all that were drawn, so the shares say \
little. Cut its texts, or draw more tokens."""  # noqa: E501


def test_the_table_by_answer_tokens_and_by_rows():
    sources = {"short": answers(10, 3), "long": answers(4, 30)}
    sampler, shares = MixtureSampler(sources, processor()), {"short": 1, "long": 1}
    counts = [sampler.draw(Mixture(shares, u), 120) for u in ("answer_tokens", "rows")]
    # By tokens 20 x 3 and 2 x 30, by rows 4 x 3 and 4 x 30, which is where 120 is passed.
    assert mixture_text(*counts) == TABLE
    assert counts[0].largest == {"short": 3, "long": 30}


def test_no_warning_where_every_sample_is_small():
    large = [draw({"a": answers(9, 5)}, {"a": 1}, tokens) for tokens in (95, 100)]
    # 5 of 95 tokens are more than 5 %, 5 of 100 are not.
    assert ["Beware" in mixture_text(count, count) for count in large] == [True, False]


def test_draws_and_counts_are_those_of_training():
    """Every sample once: texts of several rows, captions, pictures, and bad ones."""
    captions = [[sample(f"{k}-{j}", "b" * (1 + j), [png()]) for j in range(3)] for k in range(5)]
    sources = {
        "captions": [*captions, []],
        "chat": [*answers(7, 11), sample("e", " "), {"id": "n"}, sample("l", "c" * LENGTH)],
        "text": [{"text": "d" * n, "id": str(n)} for n in (1, LENGTH - 1, LENGTH, 2 * LENGTH + 9)],
    }
    used, mixture = processor(), Mixture(dict.fromkeys(sources, 1), epochs=1, seed=2)
    encoder = RowEncoder(used.encode, LENGTH)
    planner = Planner(sources, encoder, used.tokenizer, mixture, LENGTH, 4, lambda image: 1)
    while planner.next_row() is not None:
        pass
    count = MixtureSampler(sources, used).draw(mixture, 10**9)
    assert count.shares == planner.shares()
    # Of a text's row of n tokens, eos included, n - 1 are learned.
    by_text = (1, LENGTH - 1, LENGTH - 2 + 1, 2 * (LENGTH - 1) + 9)
    assert count.shares["text"]["tokens"] == sum(by_text)
    assert count.shares["captions"]["tokens"] == 5 * (3 + 4 + 5)
    assert count.drops == {
        ("captions", "nothing to learn"): 1,
        ("chat", "empty answer"): 1,
        ("chat", "malformed sample"): 1,
        ("chat", "too long"): 1,
    }
    assert (count.drawn, count.tokens) == (20, sum(s["tokens"] for s in count.shares.values()))
    assert count.found.samples == 16 and count.found.images == 15
    assert set(count.found.sizes) == {(9, 6)} and min(count.found.row_tokens) > 1


def test_it_stops_at_the_first_sample_that_passes_the_number_of_tokens():
    assert [draw({"a": answers(3, 5)}, {"a": 1}, n).tokens for n in (1, 5, 6)] == [5, 5, 10]
    ended = draw({"a": answers(3, 5)}, {"a": 1}, 1000, epochs=2)
    assert (ended.tokens, ended.shares["a"]["epochs"]) == (30, 2.0)
    with pytest.raises(ValueError, match="tokens must be at least 1, got 0"):
        draw({"a": answers(3, 5)}, {"a": 1}, 0)


def test_a_row_is_read_once_for_both_mixtures():
    class Counted(list):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    sources = {"a": Counted(answers(4, 5)), "b": Counted([*answers(2, 9), sample("e", "")])}
    sampler, shares = MixtureSampler(sources, processor(), shown=3), {"a": 1, "b": 1}
    for unit in ("answer_tokens", "rows"):
        sampler.draw(Mixture(shares, unit), 500)
    assert (sources["a"].reads, sources["b"].reads) == (4, 3)
    assert {name: len(shown) for name, shown in sampler.shown.items()} == {"a": 3, "b": 2}
    assert all(looked["messages"][1]["content"] for looked, _ in sampler.shown["b"])


def test_drops_by_source_and_reason_in_every_epoch():
    good = [sample(k, "aaaa", [png()]) for k in range(4)]
    sources = {
        "one": [*good, sample("m", "aaaa", ["/nowhere.png"]), sample("u", "aaaa", [b"text"])],
        "two": [*good, sample("m", "aaaa", ["/nowhere.png"]), [*good[:1], sample("e", "")]],
    }
    counts = [draw(sources, {"one": 1, "two": 1}, 10**6, u, 2) for u in ("answer_tokens", "rows")]
    assert (
        counts[0].drops
        == counts[1].drops
        == {
            ("one", "missing image"): 2,
            ("one", "unreadable image"): 2,
            ("two", "missing image"): 2,
            ("two", "empty answer"): 2,
        }
    )
    assert counts[0].shares["one"]["tokens"] == 2 * 4 * 6
    assert counts[0].shares["one"]["rows"] == 8 and counts[0].shares["one"]["drawn"] == 12
    lines = mixture_text(*counts).splitlines()
    assert "8 of 24 samples were left out" in lines
    assert "  two  empty answer                     2" in lines


def test_what_is_left_out_does_not_count_for_its_share():
    sources = {
        "good": answers(50, 5),
        "bad": [sample(k, "" if k % 2 else "aaa") for k in range(50)],
    }
    count = draw(sources, {"good": 1, "bad": 1}, 5000)
    assert count.shares["bad"]["token_share"] == pytest.approx(0.5, abs=0.005)
    assert count.drops["bad", "empty answer"] == pytest.approx(500, abs=30)


def test_a_source_without_anything_to_learn_says_why():
    sources = {"good": answers(9, 5), "bad": [sample(k, "a", ["/gone.png"]) for k in range(3)]}
    with pytest.raises(ValueError) as caught:
        draw(sources, {"good": 1, "bad": 1}, 10**6)
    assert re.search(
        "last 6 samples of source 'bad' had no supervised token.* Left out: missing image: 6. "
        "The last: Image file '/gone.png' does not exist",
        str(caught.value),
    )


def test_streams_are_drawn_in_their_order():
    rows = [{"id": k, "question": "what?", "answer": "a" * (k + 1)} for k in range(4)]
    stream = StreamingSource(rows, "jsonl", "s")
    count = draw({"s": stream}, {"s": 1}, 3 + 4)
    assert (count.tokens, count.drawn, count.shares["s"]["epochs"]) == (7, 2, None)
    assert "      ?" in mixture_text(count, count)
    count = draw({"s": stream}, {"s": 1}, 1000, epochs=2)
    assert (count.tokens, count.drawn) == (2 * (3 + 4 + 5 + 6), 8)


def test_sources_and_shares_must_agree():
    with pytest.raises(ValueError, match=r"\['b'\] were not given"):
        draw({"a": answers(3, 5)}, {"a": 1, "b": 1}, 10)


@pytest.mark.data
def test_real_shares(data_folder):
    shares = {"easy_vqa": 0.05, "daquar": 0.05, "flickr8k": 0.2, "sroie": 0.2, "text": 0.5}
    tokenizer = load_tokenizer(data_folder / "tokenizers" / "smollm2")
    sampler = MixtureSampler(open_folder(data_folder, shares), inspection_processor(tokenizer))
    by_tokens, by_rows = (
        sampler.draw(Mixture(shares, unit), 200_000) for unit in ("answer_tokens", "rows")
    )
    for count in (by_tokens, by_rows):
        assert count.tokens >= 200_000 and not count.drops
    for name, share in shares.items():
        numbers = by_tokens.shares[name]
        assert numbers["target"] == pytest.approx(share)
        assert abs(numbers["token_share"] - share) < 0.01
    gaps = {n: abs(s["token_share"] - s["target"]) for n, s in by_rows.shares.items()}
    assert max(gaps.values()) > 0.10
