import numpy as np
import pytest
from golden_cases import CASES, FILE


def test_every_case_is_in_the_file():
    assert set(np.load(FILE)) == set(CASES)


@pytest.mark.parametrize("name", list(CASES))
def test_golden(name):
    expected = np.load(FILE)[name]
    got = CASES[name]()
    assert np.abs(expected).mean() > 0.05
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
