import numpy as np
import pytest

from dl_techniques.generation.buckets import bucket, pad_to


def test_buckets_by_hand():
    assert [bucket(n) for n in range(10)] == [0, 1, 2, 3, 4, 6, 6, 8, 8, 12]
    sizes = [bucket(n, 16) for n in (0, 1, 16, 17, 24, 25, 33, 49, 65, 97)]
    assert sizes == [0, 16, 16, 24, 24, 32, 48, 64, 96, 128]


@pytest.mark.parametrize("smallest", [1, 4, 16])
def test_buckets_are_few_and_waste_at_most_a_third(smallest):
    sizes = [bucket(n, smallest) for n in range(1, 5000)]
    assert all(size >= n for n, size in enumerate(sizes, 1))
    assert all(size - n <= size / 3 for n, size in enumerate(sizes, 1) if n > smallest)
    assert sizes == sorted(sizes) and len(set(sizes)) <= 26
    assert all(bucket(size, smallest) == size for size in sizes)


def test_padding():
    array = np.arange(6).reshape(2, 3)
    assert pad_to(array, 3, 1) is array
    assert pad_to(array, 5, 1, 9).tolist() == [[0, 1, 2, 9, 9], [3, 4, 5, 9, 9]]
    assert pad_to(array, 4, 1, 9, before=True).tolist() == [[9, 0, 1, 2], [9, 3, 4, 5]]
    assert pad_to(array, 3, 0).tolist() == [[0, 1, 2], [3, 4, 5], [0, 0, 0]]
