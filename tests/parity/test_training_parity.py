"""200 steps of training beside a plain PyTorch loop over SmolVLM: the same loss at every step."""

import math

import numpy as np
from reference_models import SMOLVLM_IMAGE_ID, smolvlm_of, state_of, tiny_smolvlm

from dl_techniques.training.stages import Stage

STEPS, ROWS, LENGTH, WARMUP = 200, 4, 16, 10
RATES = {"vision_encoder": 1e-3, "modality_projection": 1e-2, "language_decoder": 2e-3}
PARTS = {"vision_encoder": "vision_model", "modality_projection": "connector"}


def batches():
    """Yield pictures of three colours and texts that tell which, in rows of uneven length."""
    generator = np.random.default_rng(0)
    for _ in range(STEPS):
        colours = generator.integers(0, 3, ROWS)
        images = generator.uniform(-1, 1, (ROWS, 1, 16, 16, 3)).astype("float32")
        images[np.arange(ROWS), ..., colours] = 1.0
        ids = generator.integers(10, 30, (ROWS, LENGTH)).astype("int32")
        ids[:, 1:5] = SMOLVLM_IMAGE_ID
        ids[:, 8:] = (3 + 2 * colours)[:, None]
        lengths = generator.integers(10, LENGTH + 1, ROWS)
        mask = np.arange(LENGTH) < lengths[:, None]
        learned = mask & (np.arange(LENGTH) >= 7)
        inputs = {"images": images, "text_tokens": ids * mask, "attention_mask": mask}
        yield inputs, np.where(learned, ids, -100).astype("int32")


def schedule(step):
    """Return the factor of the learning rates after so many steps: warm-up, then cosine to 0.1."""
    if step < WARMUP:
        return step / WARMUP
    done = (step - WARMUP) / (STEPS - WARMUP)
    return 1.0 - 0.9 * 0.5 * (1.0 - math.cos(math.pi * done))


def groups_of(reference):
    """Return PyTorch's parameter groups: a rate per part, and no decay of norms, biases, places."""
    groups = {}
    for name, weight in reference.named_parameters():
        part = next((ours for ours, theirs in PARTS.items() if theirs in name), "language_decoder")
        decayed = weight.ndim >= 2 and "position_embedding" not in name
        groups.setdefault((part, decayed), []).append(weight)
    return [
        {"params": weights, "lr": RATES[part], "weight_decay": 0.1 * decayed}
        for (part, decayed), weights in groups.items()
    ]


def losses_of_pytorch(reference):
    import torch

    optimizer = torch.optim.AdamW(groups_of(reference), betas=(0.9, 0.99), eps=1e-8)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    reference.train()
    losses = []
    for inputs, labels in batches():
        out = reference(
            input_ids=torch.from_numpy(inputs["text_tokens"]).long(),
            attention_mask=torch.from_numpy(inputs["attention_mask"]).long(),
            pixel_values=torch.from_numpy(inputs["images"]).permute(0, 1, 4, 2, 3),
        )
        loss = torch.nn.functional.cross_entropy(
            out.logits[:, :-1].flatten(0, 1),
            torch.from_numpy(labels[:, 1:]).long().flatten(),
            ignore_index=-100,
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        optimizer.step()
        rates.step()
        losses.append(float(loss.detach()))
    return losses


def test_losses_are_those_of_a_pytorch_loop():
    reference = tiny_smolvlm()
    model = smolvlm_of(state_of(reference))
    stage = Stage(
        name="parity",
        steps=STEPS,
        trainable=RATES,
        optimizer={
            **{"type": "adamw", "beta_1": 0.9, "beta_2": 0.99},
            **{"epsilon": 1e-8, "weight_decay": 0.1},
        },
        schedule={"type": "cosine", "warmup_share": WARMUP / STEPS, "alpha": 0.1},
        clipnorm=1.0,
    )
    stage.apply(model)
    losses = [float(model.train_on_batch(*batch)[0]) for batch in batches()]
    expected = losses_of_pytorch(reference)
    assert np.mean(expected[-20:]) < 0.2 * expected[0]  # There was something to learn.
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-3)
