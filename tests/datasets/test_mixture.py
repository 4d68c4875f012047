import itertools
import json
import logging
import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from dl_techniques.datasets import read_samples
from dl_techniques.datasets.mixture import Mixture
from dl_techniques.datasets.mixture_recipes import MIXTURES, flatten_shares
from dl_techniques.datasets.permutation import OPEN_BLOCKS, BlockOrder, permuted, stream_key
from dl_techniques.datasets.rows import IGNORE_INDEX, RowEncoder
from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.preprocessing.chat_template import encode_conversation
from dl_techniques.preprocessing.tokenizer import load_tokenizer

COST = {"short": 2, "middle": 20, "long": 300}
SHARES = {"short": 0.2, "middle": 0.5, "long": 0.3}
LENGTHS = {"short": 700, "middle": 40, "long": 9}


def draw(run, count, cost=COST.get):
    """Draw and count samples; an answer's length varies by half around its source's mean."""
    drawn = []
    for _ in range(count):
        source, index, epoch = run.next()
        run.count(source, round(cost(source) * (0.5 + stream_key(source, index) / 2**64)))
        drawn.append((source, index, epoch))
    return drawn


def realised(run, key="token_share"):
    return {name: numbers[key] for name, numbers in run.shares().items()}


def largest_gap(run, key="token_share"):
    return max(abs(numbers[key] - numbers["target"]) for numbers in run.shares().values())


def indices(drawn, source, epoch):
    return [i for s, i, e in drawn if (s, e) == (source, epoch)]


@pytest.mark.parametrize("length", [1, 2, 3, 5, 10, 100, 257, 1000])
def test_a_permutation_of_every_length(length):
    for seed in range(5):
        order = [permuted(i, length, stream_key(seed)) for i in range(length)]
        assert sorted(order) == list(range(length))


def test_permutations_look_random():
    counts = Counter()
    for seed in range(12000):
        key = stream_key(seed)
        counts[tuple(permuted(i, 5, key) for i in range(5))] += 1
    assert set(counts) == set(itertools.permutations(range(5)))
    # Chi squared with 119 degrees of freedom: 119 +- 15.4.
    assert sum((n - 100) ** 2 / 100 for n in counts.values()) < 119 + 5 * 15.4
    correlations = []
    for seed in range(40):
        order = [permuted(i, 500, stream_key(seed)) for i in range(500)]
        correlations.append(np.corrcoef(order, np.arange(500))[0, 1])
    assert np.abs(correlations).max() < 4.5 / math.sqrt(500)
    assert 0.6 < np.std(correlations) * math.sqrt(500) < 1.4


@pytest.mark.parametrize(
    "sizes", [[1], [3], [2, 0, 5], [1, 1, 1, 1], [4, 1, 7, 2, 9], [5] * 8, [3] * 13, [1, 100, 1]]
)
def test_a_block_order_is_a_permutation_in_which_few_blocks_are_open(sizes):
    order, ends = BlockOrder(np.cumsum(sizes)), np.cumsum(sizes)
    orders = []
    for seed in (1, 2, 1):
        found = [order.index(k, stream_key(seed)) for k in range(ends[-1])]
        assert sorted(found) == list(range(ends[-1]))
        blocks = np.searchsorted(ends, found, side="right")
        windows = [len(set(group)) for group in np.split(blocks, _window_ends(blocks))]
        assert max(windows) <= OPEN_BLOCKS
        orders.append(found)
    assert orders[0] == orders[2]
    assert len(sizes) < 4 or orders[0] != orders[1]


def _window_ends(blocks):
    """Return where every block that was begun has been read to its end."""
    left, opened, ends = Counter(blocks.tolist()), set(), []
    for place, block in enumerate(blocks.tolist()):
        opened.add(block)
        left[block] -= 1
        if not any(left[b] for b in opened):
            ends.append(place + 1)
            opened = set()
    return ends[:-1]


def test_other_blocks_are_another_plan():
    first = Mixture({"a": 1}).start({"a": 10}, {"a": BlockOrder([4, 10])})
    state = json.loads(json.dumps(first.state()))
    same = Mixture({"a": 1}).start({"a": 10}, {"a": BlockOrder([4, 10])})
    same.restore(state)
    assert [same.next() for _ in range(10)] == [first.next() for _ in range(10)]
    with pytest.raises(ValueError, match="its blocks is"):
        Mixture({"a": 1}).start({"a": 10}, {"a": BlockOrder([5, 10])}).restore(state)


def test_golden_order():
    # A run is resumed by other versions of Python and NumPy: the order may never change.
    run = Mixture({"a": 1, "b": 1}, unit="rows", seed=3).start({"a": 10**6, "b": 5})
    assert draw(run, 8, lambda _: 1) == GOLDEN


GOLDEN = [
    ("a", 974029, 0),
    ("b", 2, 0),
    ("b", 4, 0),
    ("a", 653412, 0),
    ("b", 0, 0),
    ("a", 412272, 0),
    ("b", 3, 0),
    ("a", 528428, 0),
]


def test_shares_of_answer_tokens_and_of_rows():
    tokens, rows = (Mixture(SHARES, unit=unit) for unit in ("answer_tokens", "rows"))
    by_tokens, by_rows = tokens.start(LENGTHS), rows.start(LENGTHS)
    draw(by_tokens, 20000)
    draw(by_rows, 20000)
    assert largest_gap(by_tokens) < 0.005
    assert realised(by_tokens, "row_share")["short"] > 0.75
    assert largest_gap(by_rows, "row_share") < 0.001
    assert realised(by_rows)["long"] > 0.85
    report = by_tokens.shares()
    assert report["long"]["target"] == pytest.approx(0.3)
    assert sum(numbers["drawn"] for numbers in report.values()) == 20000
    assert report["long"]["epochs"] == report["long"]["drawn"] / 9


def test_what_was_misjudged_is_made_up_for():
    run = Mixture({"a": 1, "b": 1}).start({"a": 100, "b": 100})
    draw(run, 2000, {"a": 10, "b": 10}.get)
    draw(run, 20000, {"a": 100, "b": 10}.get)
    assert largest_gap(run) < 0.005


def test_samples_may_be_drawn_ahead():
    run, pending = Mixture(SHARES).start(LENGTHS), []
    for _ in range(20000):
        pending.append(run.next()[0])
        if len(pending) > 64:
            source = pending.pop(0)
            run.count(source, COST[source])
    assert largest_gap(run) < 0.01


def test_sources_are_interleaved_without_a_pattern():
    run = Mixture({"a": 1, "b": 1, "c": 2}, unit="rows").start({"a": 99, "b": 99, "c": 99})
    names = [source for source, _, _ in draw(run, 4000, lambda _: 1)]
    blocks = [len(list(block)) for _, block in itertools.groupby(names)]
    assert max(blocks) <= 6
    for start in range(0, 4000, 40):
        assert abs(names[start : start + 40].count("c") - 20) <= 4
    followers = Counter(itertools.pairwise(names))
    assert len(followers) == 9 and min(followers.values()) > 20
    assert len({tuple(names[k : k + 8]) for k in range(0, 4000, 8)}) > 80


def test_every_epoch_has_every_index_once_in_its_own_order():
    drawn = draw(Mixture(SHARES, seed=1).start(LENGTHS), 3000)
    orders = [indices(drawn, "middle", epoch) for epoch in range(4)]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert len(set(map(tuple, orders))) == 4


def test_an_order_depends_on_seed_source_and_epoch_only():
    order = indices(draw(Mixture(SHARES).start(LENGTHS), 2000), "middle", 1)
    others = {"long": 0.1, "middle": 0.1, "new": 3.0}
    again = draw(Mixture(others, unit="rows").start({"new": 5, "middle": 40, "long": 9}), 5000, len)
    assert indices(again, "middle", 1) == order
    seeded = draw(Mixture(SHARES, seed=1).start(LENGTHS), 2000)
    assert indices(seeded, "middle", 1) != order


def test_no_two_sources_share_a_random_stream():
    names = ["a", "b", "ab", "a1", "a11"]
    run = Mixture(dict.fromkeys(names, 1), unit="rows").start(dict.fromkeys(names, 60))
    drawn = draw(run, 5 * 180, lambda _: 1)
    orders = [indices(drawn, name, epoch) for name in names for epoch in (0, 1)]
    for one, two in itertools.combinations(orders, 2):
        assert sum(a == b for a, b in zip(one, two, strict=True)) < 10
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.55
    # Equal shares of rows come in rounds, but always in the same order if the moments were shared.
    rounds = {tuple(source for source, _, _ in drawn[k : k + 5]) for k in range(0, 600, 5)}
    assert all(len(set(names)) == 5 for names in rounds) and len(rounds) > 50


def test_the_order_of_the_dicts_does_not_matter():
    one = draw(Mixture(SHARES).start(LENGTHS), 500)
    other = Mixture(dict(reversed(SHARES.items()))).start(dict(sorted(LENGTHS.items())))
    assert draw(other, 500) == one


def test_exhausted_sources_leave_their_share_to_the_rest(caplog):
    caplog.set_level(logging.INFO, logger="dl_techniques")
    run = Mixture(SHARES, epochs={"short": 1.5, "middle": None}).start(LENGTHS)
    draw(run, 1500)
    assert run.shares()["short"]["drawn"] == 1050
    before = run.shares()
    draw(run, 5000)
    after = run.shares()
    assert after["short"]["drawn"] == 1050 and after["short"]["epochs"] == 1.5
    gained = {n: after[n]["tokens"] - before[n]["tokens"] for n in ("middle", "long")}
    assert gained["middle"] / sum(gained.values()) == pytest.approx(0.5 / 0.8, abs=0.01)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "Source short is exhausted after 1.5 epochs; from here on: middle 0.625, long 0.375"
    ]


def test_the_end_of_a_single_source_is_no_news(caplog):
    caplog.set_level(logging.INFO, logger="dl_techniques")
    run = Mixture({"short": 1.0}, epochs=1).start({"short": 3})
    draw(run, 3)
    assert run.shares()["short"]["drawn"] == 3 and not caplog.records


def test_the_end(caplog):
    caplog.set_level(logging.INFO, logger="dl_techniques")
    run = Mixture({**SHARES, "unused": 0}, epochs=2).start({**LENGTHS, "unused": 7})
    drawn = draw(run, 2 * sum(LENGTHS.values()))
    for name, length in LENGTHS.items():
        for epoch in (0, 1):
            assert sorted(indices(drawn, name, epoch)) == list(range(length))
    for _ in range(2):
        with pytest.raises(StopIteration):
            run.next()
    assert len(caplog.records) == 3 and "the end" in caplog.records[-1].getMessage()


def test_temperature_and_shares_by_length():
    def targets(shares, lengths, **arguments):
        return realised(Mixture(shares, **arguments).start(lengths), "target")

    lengths = {"a": 100, "b": 900}
    assert targets(None, lengths) == pytest.approx({"a": 0.1, "b": 0.9})
    assert targets(None, lengths, temperature=2) == pytest.approx({"a": 0.25, "b": 0.75})
    assert targets({"a": 16, "b": 1}, lengths, temperature=4) == pytest.approx(
        {"a": 2 / 3, "b": 1 / 3}
    )
    assert targets({"a": 3, "b": 0}, lengths, temperature=4) == {"a": 1.0, "b": 0.0}
    # No overflow, and ever more of the largest.
    assert targets({"a": 1e-9, "b": 1e300}, lengths, temperature=0.01) == {"a": 0.0, "b": 1.0}


@pytest.mark.parametrize("unit", ["answer_tokens", "rows"])
@pytest.mark.parametrize("steps", [0, 1, 333])
def test_a_restored_run_goes_on_as_if_nothing_had_been(unit, steps):
    mixture = Mixture(SHARES, unit=unit, seed=5, epochs={"short": 1})
    run = mixture.start(LENGTHS)
    draw(run, steps)
    ahead = [run.next() for _ in range(3)]
    state = json.loads(json.dumps(run.state(), sort_keys=True))
    restored = mixture.start(LENGTHS)
    draw(restored, 17)
    restored.restore(state)
    assert restored.shares() == run.shares()
    for source, _, _ in ahead:
        run.count(source, 7)
        restored.count(source, 7)
    assert draw(restored, 1500) == draw(run, 1500)
    assert restored.state() == run.state()


def test_a_state_of_another_mixture_is_refused():
    state = Mixture(SHARES).start(LENGTHS).state()
    for mixture, lengths, name in [
        (Mixture(SHARES, unit="rows"), LENGTHS, "unit"),
        (Mixture(SHARES, seed=1), LENGTHS, "seed"),
        (Mixture(SHARES), {**LENGTHS, "long": 10}, "lengths"),
        (Mixture({**SHARES, "long": 0.4}), LENGTHS, "shares"),
    ]:
        with pytest.raises(ValueError, match=f"its {name} is"):
            mixture.start(lengths).restore(state)
    with pytest.raises(ValueError, match="result of state"):
        Mixture(SHARES).start(LENGTHS).restore(state["plan"])


@pytest.mark.parametrize("unit", ["answer_tokens", "rows"])
def test_samples_left_out_do_not_count(unit):
    run = Mixture({"good": 1, "bad": 1}, unit=unit).start({"good": 50, "bad": 50})
    for _ in range(4000):
        source, index, _ = run.next()
        run.count(source, 0 if source == "bad" and index % 2 else 5)
    report = run.shares()
    assert largest_gap(run) < 0.005
    assert report["bad"]["drawn"] == pytest.approx(2 * report["good"]["drawn"], rel=0.05)
    assert report["bad"]["rows"] * 5 == report["bad"]["tokens"]


def test_a_source_without_anything_to_learn_is_an_error():
    run = Mixture({"good": 1, "empty": 1}).start({"good": 50, "empty": 30})
    with pytest.raises(ValueError, match="last 60 samples of source 'empty' had no supervised"):
        draw(run, 1000, {"good": 5, "empty": 0}.get)
    restored = Mixture({"good": 1, "empty": 1}).start({"good": 50, "empty": 30})
    restored.restore(run.state())
    with pytest.raises(ValueError, match="last 61 samples of source 'empty'"):
        draw(restored, 1000, {"good": 5, "empty": 0}.get)
    run = Mixture({"big": 1}).start({"big": 10**6})
    with pytest.raises(ValueError, match="last 1000 samples of source 'big'"):
        draw(run, 2000, lambda _: 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shares": {"a": -0.1, "b": 1}}, "share of 'a' must be a finite number >= 0, got -0.1"),
        ({"shares": {"a": math.nan}}, "share of 'a' must be a finite number >= 0, got nan"),
        ({"shares": {"a": math.inf}}, "share of 'a' must be"),
        ({"shares": {"a": "0.5"}}, "share of 'a' must be"),
        ({"shares": {"a": 0, "b": 0.0}}, "At least one share must be positive"),
        ({"shares": {}}, "At least one share must be positive"),
        ({"shares": {3: 1}}, "name must be a non-empty string, got 3"),
        ({"unit": "tokens"}, "unit must be one of"),
        ({"temperature": 0}, "temperature must be"),
        ({"temperature": math.nan}, "temperature must be"),
        ({"epochs": 0}, "epochs must be"),
        ({"epochs": {"a": math.nan}}, "epochs must be"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Mixture(**{"shares": SHARES, **arguments})


def test_bad_sources_and_counts():
    with pytest.raises(ValueError, match=r"Sources \['long'\] are empty"):
        Mixture(SHARES).start({**LENGTHS, "long": 0})
    with pytest.raises(ValueError, match=r"\['long'\] were not given, and \['lng'\] have no share"):
        Mixture(SHARES).start({"short": 1, "middle": 1, "lng": 1})
    with pytest.raises(ValueError, match=r"epochs names \['lng'\]"):
        Mixture(SHARES, epochs={"lng": 2}).start(LENGTHS)
    run = Mixture(SHARES).start(LENGTHS)
    source, _, _ = run.next()
    with pytest.raises(ValueError, match="Unknown source 'x'"):
        run.count("x", 1)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        run.count(source, -1)
    run.count(source, 1)
    with pytest.raises(ValueError, match=f"All 1 drawn samples of '{source}' were counted"):
        run.count(source, 1)


def test_recipes():
    assert set(MIXTURES) == {
        "vision_pretrain",
        "vision_sft",
        "vision_sft_minimal",
        "vision_sft_premium",
        "nvlm",
    }
    for shares in MIXTURES.values():
        assert sum(shares.values()) == pytest.approx(1.0)
        Mixture(shares).start(dict.fromkeys(shares, 10))
    assert MIXTURES["vision_pretrain"] == {"coco_captions": 0.10, "laion_filtered": 0.90}
    assert list(MIXTURES["vision_sft"].values()) == [
        *(0.45, 0.05, 0.15, 0.05, 0.10, 0.02, 0.03, 0.10, 0.05)
    ]
    assert list(MIXTURES["vision_sft_minimal"].values()) == [0.50, 0.20, 0.12, 0.10, 0.08]
    assert list(MIXTURES["vision_sft_premium"].values()) == [0.30, 0.20, 0.20, 0.12, 0.10, 0.08]
    assert MIXTURES["nvlm"]["smoltalk"] == pytest.approx(0.40)
    assert MIXTURES["nvlm"]["chartqa"] == pytest.approx(0.60 * 0.10 / 0.95)


def test_groups_are_flattened():
    nested = {"images": (3, {"a": 1, "b": [1, {"c": 1, "d": 3}]}), "text": 1}
    assert flatten_shares(nested) == pytest.approx(
        {"a": 3 / 8, "c": 3 / 32, "d": 9 / 32, "text": 1 / 4}
    )
    for bad, message in [
        ({"a": 1, "g": (1, {"a": 1})}, "Source 'a' occurs twice, as 'a' and 'g/a'"),
        ({"g": (1, {"x": 1}), "h": (1, {"x": 1})}, "occurs twice, as 'g/x' and 'h/x'"),
        ({"g": (1, {})}, "The shares in 'g/' sum to 0"),
        ({"g": (1, {"a": 0.0})}, "The shares in 'g/' sum to 0"),
        ({"g": (-1, {"a": 1})}, "share of 'g' must be"),
        ({"g": (1, {"a": math.nan})}, "share of 'g/a' must be"),
        ({"g": {"a": 1}}, "share of 'g' must be"),
        ({"g": (1, 2, 3)}, "'g' is"),
        ({"g": (1, 2)}, "Expected a dict of shares, got 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            flatten_shares(bad)


def test_no_backend_is_imported():
    code = (
        "import sys, dl_techniques.datasets.mixture, dl_techniques.datasets.augmentation, "
        "dl_techniques.preprocessing.adaptive_resolution; "
        "print({'keras', 'torch', 'jax', 'tensorflow'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr


REAL_SHARES = {
    "easy_vqa": 0.05,
    "coco_yesno": 0.10,
    "daquar": 0.10,
    "flickr8k": 0.30,
    "chartqa_subset": 0.15,
    "text": 0.30,
}


def text_samples(path, characters=800):
    text = path.read_text(encoding="utf-8")
    for start in range(0, len(text), characters):
        yield {
            "id": f"text-{start}",
            "source": "text",
            "images": [],
            "messages": [
                {"role": "user", "content": "Write."},
                {"role": "assistant", "content": text[start : start + characters]},
            ],
        }


@pytest.fixture(scope="module")
def real_sources(data_folder):
    """Source -> samples, and (source, index) -> number of supervised tokens, found once each."""
    samples = {name: read_samples(data_folder / name) for name in REAL_SHARES if name != "text"}
    samples["text"] = list(text_samples(data_folder / "text" / "tinyshakespeare.txt"))
    tokenizer = load_tokenizer(data_folder / "tokenizers" / "smollm2")
    special = tokenizer.vocab_size, tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id
    processor = VQADataProcessor(224, 1024, *special, tokenizer=tokenizer, template="chatml")

    def encode(messages, continues):
        return encode_conversation(messages, tokenizer, processor.template, continues=continues)

    encoder, known = RowEncoder(encode, processor.max_text_length), {}

    def count(source, index):
        if (source, index) not in known:
            rows = encoder.rows(samples[source][index])
            known[source, index] = sum(int((row.tokens()[1] != IGNORE_INDEX).sum()) for row in rows)
        return known[source, index]

    return {name: len(rows) for name, rows in samples.items()}, count


@pytest.mark.data
def test_shares_of_real_sources(real_sources):
    lengths, count = real_sources
    runs = {}
    for unit in ("answer_tokens", "rows"):
        run = runs[unit] = Mixture(REAL_SHARES, unit=unit).start(lengths)
        learned, names = 0, []
        while learned < 200_000:
            source, index, _ = run.next()
            tokens = count(source, index)
            run.count(source, tokens)
            learned += tokens
            names.append(source)
        assert largest_gap(run, {"answer_tokens": "token_share", "rows": "row_share"}[unit]) < 0.01
        # Interleaved: no source that is drawn often pauses for long.
        for name in ("easy_vqa", "flickr8k"):
            places = [k for k, source in enumerate(names) if source == name]
            assert max(np.diff(places)) < 20 * len(names) / len(places)
    print(f"\n{'source':16}{'target':>8}{'by tokens':>11}{'by rows':>9}{'drawn':>7}{'epochs':>8}")
    by_rows = realised(runs["rows"])
    for name, numbers in runs["answer_tokens"].shares().items():
        print(
            f"{name:16}{numbers['target']:8.3f}{numbers['token_share']:11.4f}"
            f"{by_rows[name]:9.3f}{numbers['drawn']:7}{numbers['epochs']:8.2f}"
        )
    assert by_rows["text"] > 0.7  # What mixing by rows makes of a share of 0.3.
