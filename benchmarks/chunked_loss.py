"""Times the loss of 8 x 512 tokens over 49,152 ids, from chunks of logits and from all of them.

    python benchmarks/chunked_loss.py [--backend jax] [--rounds 5]

Forward and backward pass of a tied head of width 576 (SmolLM2-135M) in float32, with every token
supervised and with every fourth, as in rows of prompts, images and padding. "ours" is
`chunked_cross_entropy` with its default chunk, "peer" `NanoVLMLoss` on the product of states and
table. Memory is what the process takes beyond its state before the first step.
"""

import argparse
import json
import resource

import numpy as np
from side_by_side import figure, measure, print_report, run_child

ROWS, LENGTH, WIDTH, VOCABULARY = 8, 512, 576, 49152


def batch(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return states [B, L, D], a table [V, D] and labels [B, L], every `step`-th of them kept."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(ROWS, LENGTH, WIDTH)).astype("float32")
    table = rng.normal(size=(VOCABULARY, WIDTH)).astype("float32") * 0.02
    labels = rng.integers(0, VOCABULARY, (ROWS, LENGTH)).astype("int32")
    kept = np.arange(LENGTH) % step == 0
    return hidden, table, np.where(kept, labels, -100)


def chunked_loss(labels):
    """Return the mean loss as a function of states and table, chunk by chunk."""
    from keras import ops

    from dl_techniques.losses.chunked_cross_entropy import chunked_cross_entropy
    from dl_techniques.losses.nanovlm_loss import next_token_targets, token_weights

    def loss(hidden, table):
        targets = next_token_targets(labels)
        weights = token_weights(targets, labels.shape)
        return chunked_cross_entropy(hidden, targets, weights, table)[0] / ops.sum(weights)

    return loss


def plain_loss(labels):
    """Return the same through the logits of all tokens."""
    from keras import ops

    from dl_techniques.losses import NanoVLMLoss

    return lambda hidden, table: NanoVLMLoss()(labels, ops.matmul(hidden, ops.transpose(table)))


def compiled_step(loss, hidden, table):
    """Return a function that computes the loss and both gradients, as training does."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        function = jax.jit(jax.value_and_grad(loss, (0, 1)))
        arrays = jax.numpy.asarray(hidden), jax.numpy.asarray(table)
        return lambda: jax.block_until_ready(function(*arrays))
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        constants = [tf.constant(hidden), tf.constant(table)]

        @tf.function(jit_compile=True)
        def function(*arrays):
            with tf.GradientTape() as tape:
                tape.watch(arrays)
                value = loss(*arrays)
            return value, tape.gradient(value, arrays)

        return lambda: function(*constants)[0].numpy()
    import torch

    tensors = [torch.tensor(x, requires_grad=True) for x in (hidden, table)]

    def step():
        for x in tensors:
            x.grad = None
        loss(*tensors).backward()

    return step


def child(role: str, rounds: int) -> dict:
    """Measure one role: "chunked" or "plain", "_4" behind it for every fourth token."""
    from dl_techniques.utils.memory import keep_freed_memory

    keep_freed_memory()
    name, _, every = role.partition("_")
    hidden, table, labels = batch(int(every or 1))
    loss = {"chunked": chunked_loss, "plain": plain_loss}[name](labels)
    step = compiled_step(loss, hidden, table)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    measured = measure(step, rounds)
    return {**measured, "extra_mb": measured["peak_mb"] - before}


def main() -> None:
    """Measure every backend asked for, or act as one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=["jax", "tensorflow", "torch"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--role", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        print(json.dumps(child(options.role, options.rounds)))
        return
    figures = []
    for backend in [options.backend] if options.backend else ["jax", "tensorflow", "torch"]:
        for every, name in (("", "all"), ("_4", "fourth")):
            ours, peer = (
                run_child(__file__, role + every, backend, options.rounds)
                for role in ("chunked", "plain")
            )
            for what, key, unit in (("step", "median", "s"), ("memory", "extra_mb", "MB")):
                figures.append(figure(f"{what}_{name}", backend, ours[key], peer[key], unit))
    print_report(figures)


if __name__ == "__main__":
    main()
