"""How well a model predicts plain text."""

import numpy as np


def perplexity(log_likelihood, tokens):
    """Return exp(-log_likelihood / tokens), of numbers or of arrays of them.

    Args:
        log_likelihood: Sum over the tokens, in nats.
        tokens: How many there are.

    Raises:
        ValueError: for no token, or a log-likelihood above 0.
    """
    return np.exp(_loss(log_likelihood, tokens, "tokens"))


def bits_per_byte(log_likelihood, text_bytes):
    """Return -log2 of the likelihood per byte of UTF-8: comparable across tokenizers.

    Of numbers or of arrays of them.

    Args:
        log_likelihood: Sum over the tokens, in nats.
        text_bytes: The length of the predicted text in UTF-8.

    Raises:
        ValueError: for no byte, or a log-likelihood above 0.
    """
    return _loss(log_likelihood, text_bytes, "bytes") / np.log(2)


def _loss(log_likelihood, number, unit):
    if np.any(np.less(number, 1)) or not np.all(np.less_equal(log_likelihood, 0)):
        raise ValueError(
            f"Expected at least one of the {unit} and a log-likelihood of at most 0, got {number} "
            f"and {log_likelihood}."
        )
    return -np.divide(log_likelihood, number)
