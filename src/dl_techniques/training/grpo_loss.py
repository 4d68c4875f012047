"""The arithmetic of GRPO: advantages within a group, and the clipped loss with its KL term.

GRPO: https://arxiv.org/abs/2402.03300. The KL estimator "k3":
http://joschu.net/blog/kl-approx.html.
"""

import numpy as np
from keras import ops


def group_advantages(rewards, epsilon: float = 1e-4) -> np.ndarray:
    """Return float32[B, G]: how much better each answer is than the others to its question.

    Args:
        rewards: float[B, G], of G answers to each of B questions.
        epsilon: Is added to a group's standard deviation, by which it is divided.

    A group whose rewards are all equal has the advantages 0, exactly.

    Raises:
        ValueError: rewards that are not float[B, G] with G >= 2, or are not finite.
    """
    rewards = np.asarray(rewards, "float64")
    if rewards.ndim != 2 or rewards.shape[1] < 2 or not np.isfinite(rewards).all():
        raise ValueError(
            "Advantages need finite rewards [B, G] of at least 2 answers to each question, got "
            f"{rewards.tolist()!r:.200}."
        )
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    # Rounding of the mean must not become an advantage.
    equal = rewards.max(axis=1, keepdims=True) == rewards.min(axis=1, keepdims=True)
    scale = rewards.std(axis=1, keepdims=True) + epsilon
    return np.where(equal, 0.0, centred / scale).astype("float32")


def ratios(logprobs, old):
    """Return float32[R, N]: how much likelier each token has become since it was drawn."""
    return ops.exp(logprobs - old)


def kl_terms(logprobs, reference):
    """Return float32[R, N] >= 0: per token, an estimate of KL(policy || reference), k3.

    Its mean over tokens that the policy drew is the divergence.
    """
    difference = reference - logprobs
    return ops.exp(difference) - difference - 1.0


def grpo_loss(
    logprobs, old, reference, advantages, mask, clip_epsilon: float = 0.2, kl_coef: float = 0.04
):
    """Return float32[]: the mean over all tokens of all answers.

    Of each token -min(ratio * A, clip(ratio) * A) + kl_coef * k3, with the ratio of its probability
    to what it was when it was drawn, within [1 - clip_epsilon, 1 + clip_epsilon] when clipped. Long
    answers so count for more than short ones, and none is favoured for its length
    (https://arxiv.org/abs/2503.14476).

    Args:
        logprobs: float32[R, N], of the policy; all gradients go through it.
        old: float32[R, N], of the policy that drew the tokens.
        reference: float32[R, N], of the model from which the policy must not stray.
        advantages: float32[R], one for each answer.
        mask: float32[R, N], 1 for an answer's tokens, its end token among them, else 0.
        clip_epsilon: How far the ratio may go.
        kl_coef: What the divergence counts for.
    """
    arrays = (logprobs, old, reference, advantages, mask)
    logprobs, old, reference, advantages, mask = map(ops.convert_to_tensor, arrays)
    advantages = ops.expand_dims(advantages, 1)
    ratio = ratios(logprobs, old)
    clipped = ops.clip(ratio, 1.0 - clip_epsilon, 1.0 + clip_epsilon)
    gain = ops.minimum(ratio * advantages, clipped * advantages)
    terms = kl_coef * kl_terms(logprobs, reference) - gain
    return masked_mean(terms, mask)


def masked_mean(values, mask):
    """Return float32[], the mean where the mask is 1; 0 where it never is."""
    return ops.divide_no_nan(ops.sum(ops.where(mask > 0, values, 0.0)), ops.sum(mask))
