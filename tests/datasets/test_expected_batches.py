"""expected_batches: what some samples of each source say of a stream's end."""

import pytest
from tiny_streams import sources, stream

from dl_techniques.datasets.expected_batches import expected_batches
from dl_techniques.datasets.mixture import Mixture
from dl_techniques.datasets.sources import StreamingSource

pytestmark = pytest.mark.no_backend


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 2.0},
        {"epochs": 0.5},
        {"epochs": 1.0, "max_documents": 1, "batch_size": 3},
        {"epochs": {"short": 3.0, "long": 1.0}, "process_count": 2, "batch_size": 1},
    ],
)
def test_all_samples_tell_how_many_batches_there_are(settings, tmp_path):
    used = stream(**settings, quarantine=tmp_path / "bad.jsonl")
    expected = expected_batches(used)
    assert used.ends and not (tmp_path / "bad.jsonl").exists()
    assert expected == sum(1 for _ in used)


def test_some_samples_tell_about_how_many():
    used = stream(sources(short=300, long=40), epochs=1.5)
    batches = sum(1 for _ in used)
    assert expected_batches(used, 80) == pytest.approx(batches, rel=0.05)


def test_an_end_that_nobody_knows():
    for endless in (stream(), stream(epochs={"short": 1.0})):
        assert not endless.ends and expected_batches(endless) is None
    read = StreamingSource([{"text": "a"}], "plain_text", "s")
    used = stream({"short": sources()["short"], "read": read}, epochs=1.0)
    assert used.ends and expected_batches(used) is None
    assert Mixture({"a": 1.0, "b": 0.0}, epochs={"a": 1.0}).ends(["a", "b"])
