"""EpochStream: epoch after epoch, and on from any batch of the same data."""

import json

import numpy as np
import pytest

from dl_techniques.datasets.epoch_stream import EpochStream


class Numbers:
    """Three batches of one label row, in another order in each epoch."""

    def __init__(self, first=0):
        self.first, self.epoch = first, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return {}, np.array([[self.first, 10 * self.epoch + i]])

    def sample_ids(self, i):
        return [f"{self.epoch}/{i}"]


def take(iterator, count):
    return [int(next(iterator)[1][0, 1]) for _ in range(count)]


def test_epochs_follow_each_other_and_name_their_samples():
    iterator = iter(EpochStream(Numbers(), part=lambda batch: (batch[0], batch[1] + 1)))
    assert take(iterator, 5) == [1, 2, 3, 11, 12]
    assert iterator.sample_ids() == ["1/1"]


@pytest.mark.parametrize("given", [1, 3, 4])
def test_it_goes_on_behind_the_batch_that_was_given_last(given):
    iterator = iter(EpochStream(Numbers()))
    take(iterator, given)
    again = iter(EpochStream(Numbers()))
    again.set_state(json.loads(json.dumps(iterator.get_state())))
    assert take(again, 4) == take(iterator, 4)


def test_the_state_of_other_data_is_refused():
    state = iter(EpochStream(Numbers())).get_state()
    with pytest.raises(ValueError, match="other data.*same data, batch size and seed"):
        iter(EpochStream(Numbers(first=5))).set_state(state)
