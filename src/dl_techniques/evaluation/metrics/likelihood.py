"""How well a model predicts plain text."""

import math


def perplexity(log_likelihood: float, tokens: int) -> float:
    """Return exp(-log_likelihood / tokens).

    Args:
        log_likelihood: Sum over the tokens, in nats.
        tokens: How many there are.

    Raises:
        ValueError: for no token, or a log-likelihood above 0.
    """
    return math.exp(_loss(log_likelihood, tokens, "tokens"))


def bits_per_byte(log_likelihood: float, text_bytes: int) -> float:
    """Return -log2 of the likelihood per byte of UTF-8: comparable across tokenizers.

    Args:
        log_likelihood: Sum over the tokens, in nats.
        text_bytes: The length of the predicted text in UTF-8.

    Raises:
        ValueError: for no byte, or a log-likelihood above 0.
    """
    return _loss(log_likelihood, text_bytes, "bytes") / math.log(2)


def _loss(log_likelihood, number, unit):
    if number < 1 or not log_likelihood <= 0:
        raise ValueError(
            f"Expected at least one of the {unit} and a log-likelihood of at most 0, got {number} "
            f"and {log_likelihood}."
        )
    return -log_likelihood / number
