"""GRPO: its arithmetic against NumPy, and steps of a tiny GhostVis that reads characters."""

import functools
from collections import Counter

import keras
import numpy as np
import pytest
from keras import ops
from tiny_models import fill, logits, numpy

from dl_techniques.datasets.samples import make_sample
from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.generation.engine import Engine
from dl_techniques.models.ghost_vis import GhostVis
from dl_techniques.models.lora import train_only
from dl_techniques.preprocessing.tokenizer import CharacterTokenizer
from dl_techniques.training.grpo import GRPOTrainer
from dl_techniques.training.grpo_batches import (
    answer_mask,
    policy_inputs,
    questions_of,
    read_questions,
)
from dl_techniques.training.grpo_loss import group_advantages, grpo_loss, kl_terms
from dl_techniques.training.grpo_policy import Policy, Reference, vision_form

CHARACTERS = 128
IMAGE_ID = CHARACTERS
TOKENS = 4
LANGUAGE, PROJECTION, VISION = "language_decoder", "modality_projection", "vision_encoder"


def ghostvis(*trains) -> GhostVis:
    """Return a model of 16-pixel images, 4 tokens each, as new; what is named trains.

    It keeps the programs of generation that were compiled for it.
    """
    trains = trains or (LANGUAGE,)
    model = made(trains)
    train_only(model, [LANGUAGE, PROJECTION, VISION])
    fill(model, 1)
    train_only(model, trains)
    tokenizer = CharacterTokenizer(CHARACTERS)
    tokenizer.add_special_tokens(["<|image|>"])
    model.processor = VQADataProcessor(
        16, tokenizer=tokenizer, image_token_id=IMAGE_ID, tokens_per_image=TOKENS
    )
    return model


@functools.cache
def made(key) -> GhostVis:
    """Return a model of its own for each key."""
    arguments = {
        "vision_config": {
            "img_size": 16,
            "patch_size": 8,
            "embed_dim": 16,
            "depth": 1,
            "num_heads": 2,
            "mlp_ratio": 2.0,
        },
        "resampler_config": {"num_tokens": TOKENS, "mode": "perceiver", "depth": 1, "num_heads": 2},
        "projector_config": {"output_dim": 16, "hidden_dim": 16},
        "language_config": {
            "hidden_dim": 16,
            "num_layers": 2,
            "num_heads": 2,
            "num_kv_heads": 1,
            "mlp_dim": 32,
            "max_positions": 96,
            "use_qkv_bias": True,
        },
        "vocab_size": CHARACTERS + 1,
        "image_token_id": IMAGE_ID,
    }
    return GhostVis(**arguments)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)


def samples() -> list[dict]:
    """Return two questions about one picture, one about another, one about two, one without."""
    first, second = picture(0), picture(1)
    return [
        make_sample("a", "", [first], [("What?", "red"), ("How many?", "2")]),
        make_sample("b", "", [second], [("Where is it?", "left")]),
        make_sample("c", "", [first, second], [("Same?", "no")]),
        make_sample("d", "", [], [("1+1?", "2")]),
    ]


def tiny_trainer(model, rate: float = 1e-2, **options) -> GRPOTrainer:
    options = {"num_samples": 4, "max_new_tokens": 4, "reward": starts_low} | options
    return GRPOTrainer(model, keras.optimizers.Adam(rate), **options)


def starts_low(question, answer) -> float:
    """Reward answers that begin with a character before "@"."""
    return float(answer[:1] < "@")


def values(variables) -> list[np.ndarray]:
    return [np.array(numpy(variable.value)) for variable in variables]


def test_advantages_by_hand():
    rewards = [[1, 0, 0, 1], [1, 1, 1, 1], [0.1, 0.1, 0.1, 0.1], [3, 0, 0, 0]]
    got = group_advantages(rewards, epsilon=0.5)
    # Means 0.5, 1, 0.1, 0.75; standard deviations 0.5, 0, 0, sqrt(27) / 4.
    last = np.array([2.25, -0.75, -0.75, -0.75]) / (27**0.5 / 4 + 0.5)
    expected = [[0.5, -0.5, -0.5, 0.5], [0] * 4, [0] * 4, last]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert (got[1:3] == 0).all()
    assert got.dtype == np.float32
    assert (group_advantages([[0.1, 0.1, 0.1]]) == 0).all()  # Whose mean is rounded: not 0.1.


@pytest.mark.parametrize("rewards", [[1.0, 0.0], [[1.0]], [[np.nan, 1.0]], [[np.inf, 1.0]]])
def test_what_is_no_group_of_rewards_is_refused(rewards):
    with pytest.raises(ValueError, match=r"finite rewards \[B, G\]"):
        group_advantages(rewards)


def test_the_loss_is_that_of_numpy():
    rng = np.random.default_rng(0)
    logprobs, old, reference = -rng.uniform(0.1, 2.0, (3, 4, 5)).astype("float32")
    mask = np.arange(5) < np.array([[5], [1], [0], [3]])
    advantages = np.array([1.5, -0.5, 3.0, 2.0], "float32")
    total, count, clips = 0.0, 0, 0
    for row in range(4):
        for column in range(5):
            if not mask[row, column]:
                continue
            now, before, start = (float(x[row, column]) for x in (logprobs, old, reference))
            ratio = np.exp(now - before)
            limited = min(max(ratio, 0.8), 1.2)
            gain = min(ratio * advantages[row], limited * advantages[row])
            clips += gain != ratio * advantages[row]
            total += -gain + 0.1 * (np.exp(start - now) - (start - now) - 1.0)
            count += 1
    assert 0 < clips < count  # Otherwise the test would not see a wrong clip.
    got = grpo_loss(logprobs, old, reference, advantages, mask.astype("float32"), 0.2, 0.1)
    np.testing.assert_allclose(numpy(got), total / count, rtol=1e-5)
    none = np.zeros_like(logprobs)
    assert numpy(grpo_loss(logprobs, old, reference, advantages, none)) == 0


def test_the_kl_estimate_is_right_in_the_mean():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(6), 2)
    terms = numpy(kl_terms(ops.convert_to_tensor(np.log(p)), ops.convert_to_tensor(np.log(q))))
    assert (terms >= 0).all()
    # The mean over p of q / p - log(q / p) - 1.
    np.testing.assert_allclose((p * terms).sum(), (p * np.log(p / q)).sum(), rtol=1e-4)


def test_an_answer_ends_with_its_first_stop():
    ids = np.array([[5, 2, 0, 0], [5, 6, 7, 8], [3, 2, 2, 2], [2, 5, 5, 5]])
    expected = [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert answer_mask(ids, [2, 3]).tolist() == np.array(expected, bool).tolist()


def batch_of(trainer, seed: int = 0):
    """Return the inputs of a policy for answers that were drawn anyhow, and their mask."""
    model, group = trainer.model, trainer.num_samples
    prompts = read_questions(model.processor, model_questions())
    vision, _ = trainer._encode(prompts.pixels)
    prompts = prompts.repeated(group)
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, CHARACTERS, (len(prompts.ids), 4)).astype("int32")
    mask = np.arange(4) < rng.integers(1, 5, (len(ids), 1))
    return policy_inputs(model, prompts, vision, ids, mask, 0, group), prompts, ids, mask


def model_questions():
    return questions_of(samples())


def distribution_by_calls(model, prompts, ids, temperature):
    """Return float64[R, N], the log-probabilities of answers by a whole call of the model."""
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts.ids, ids, strict=True)]
    ends = np.array([len(row) for row in rows])
    tokens = np.zeros((len(rows), ends.max()), "int32")
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row
    inputs = {
        "text_tokens": tokens,
        "attention_mask": np.arange(ends.max()) < ends[:, None],
        "images": prompts.pixels[prompts.index],
        "num_images": prompts.counts,
    }
    places = ends[:, None] - ids.shape[1] - 1 + np.arange(ids.shape[1])
    found = np.take_along_axis(logits(model, inputs), places[..., None], axis=1)
    found = found.astype("float64") / temperature
    found[..., IMAGE_ID] = -np.inf
    found -= found.max(axis=-1, keepdims=True)
    found -= np.log(np.exp(found).sum(axis=-1, keepdims=True))
    return np.take_along_axis(found, ids[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("trains", [(LANGUAGE,), (LANGUAGE, PROJECTION), (VISION,)])
def test_the_policy_gives_the_log_probabilities_of_the_draws(trains):
    model = ghostvis(*trains)
    trainer = tiny_trainer(model, temperature=0.7)
    inputs, prompts, ids, mask = batch_of(trainer)
    got = trainer.policy.predict_on_batch(inputs)
    assert got.shape[0] % trainer.num_samples == 0 and len(got) > len(ids)
    assert (got[len(ids) :] == 0).all()
    expected = np.where(mask, distribution_by_calls(model, prompts, ids, 0.7), 0.0)
    np.testing.assert_allclose(got[: len(ids), :4], expected, atol=2e-5, rtol=1e-5)


def test_the_policy_is_one_of_the_ids_that_the_tokenizer_has(monkeypatch):
    monkeypatch.setattr(Engine, "known_ids", 100)
    model = ghostvis(LANGUAGE)
    model.language_decoder.norm.scale.assign(np.zeros(16, "float32"))  # All are as likely.
    trainer = tiny_trainer(model)
    inputs, _, ids, mask = batch_of(trainer)
    got = trainer.policy.predict_on_batch(inputs)[: len(ids), :4]
    np.testing.assert_allclose(got[mask & (ids < 100)], -np.log(100.0), rtol=1e-5)
    assert (got[mask & (ids >= 100)] < -1e29).all()


def test_the_form_of_images_follows_what_trains():
    forms = {
        (LANGUAGE,): "embeds",
        (LANGUAGE, PROJECTION): "tokens",
        ("vision_resampler",): "tokens",
        ("vision_projector",): "tokens",
        (VISION, LANGUAGE): "pixels",
    }
    assert {trains: vision_form(ghostvis(*trains)) for trains in forms} == forms


def gradient_of_step(model, inputs, targets, **options) -> list[np.ndarray]:
    """Return what a step subtracts from each weight at the learning rate 1."""
    policy = Policy(model, **options)
    policy.compile(optimizer=keras.optimizers.SGD(1.0), jit_compile=policy.jit_compile)
    before = values(model.trainable_variables)
    policy.train_on_batch(inputs, targets)
    after = values(model.trainable_variables)
    return [old - new for old, new in zip(before, after, strict=True)]


def test_without_clip_and_kl_the_gradient_is_that_of_reinforce():
    model = ghostvis(LANGUAGE, PROJECTION)
    trainer = tiny_trainer(model)
    inputs, _, ids, _ = batch_of(trainer)
    rng = np.random.default_rng(5)
    rows, columns = inputs["answers"].shape
    targets = {
        "advantages": rng.standard_normal(rows).astype("float32"),
        "reference": -rng.uniform(0.1, 3.0, (rows, columns)).astype("float32"),
    }
    start = Reference(model)
    gradients = gradient_of_step(model, inputs, targets, kl_coef=0.0, clip_epsilon=1e9)

    def reinforce() -> float:
        """The mean over tokens of -A log p, with the gradient of which a step goes."""
        logprobs = trainer.policy.predict_on_batch(inputs).astype("float64")
        weights = targets["advantages"][:, None] / (inputs["answers"] >= 0).sum()
        return float(-(weights * logprobs).sum())

    # Along random directions, both parts of the weights together: (f(w + h) - f(w - h)) / 2h.
    parts = {LANGUAGE: 0.0, PROJECTION: 0.0}
    with start.in_the_model():
        for name in parts:
            size = 2e-3
            direction = [
                rng.standard_normal(v.shape) * (name in v.path) for v in model.trainable_variables
            ]
            base = values(model.trainable_variables)
            sides = []
            for sign in (1, -1):
                for v, b, d in zip(model.trainable_variables, base, direction, strict=True):
                    v.assign((b + sign * size * d).astype("float32"))
                sides.append(reinforce())
            for v, b in zip(model.trainable_variables, base, strict=True):
                v.assign(b)
            slope = (sides[0] - sides[1]) / (2 * size)
            expected = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
            assert abs(expected) > 1e-3  # Otherwise nothing is compared.
            np.testing.assert_allclose(slope, expected, rtol=0.02, atol=2e-4)


def test_kl_pulls_back_to_the_reference_where_advantages_are_zero():
    model = ghostvis(LANGUAGE)
    trainer = tiny_trainer(model, rate=3e-3, kl_coef=1.0)
    inputs, *_ = batch_of(trainer)
    reference = trainer.policy.predict_on_batch(inputs)
    for variable in model.trainable_variables:
        noise = np.random.default_rng(len(variable.path)).standard_normal(variable.shape)
        variable.assign(numpy(variable.value) + 0.02 * noise.astype("float32"))
    targets = {"advantages": np.zeros(len(reference), "float32"), "reference": reference}
    steps = [
        trainer.policy.train_on_batch(inputs, targets, return_dict=True)["kl"] for _ in range(15)
    ]
    assert steps[0] > 1e-3 and steps[-1] < 0.3 * steps[0]


def test_a_step_teaches_what_trains_and_nothing_else():
    model = ghostvis("language_decoder/block_1")
    frozen = [v for v in model.variables if not v.trainable]
    before, learned = values(frozen), values(model.trainable_variables)
    trainer = tiny_trainer(model)
    logs = [trainer.train_step(samples()) for _ in range(2)]
    for old, new in zip(before, values(frozen), strict=True):
        np.testing.assert_array_equal(old, new)
    assert all("language_decoder/block_1/" in v.path for v in model.trainable_variables)
    moved = [
        not np.array_equal(old, new)
        for old, new in zip(learned, values(model.trainable_variables), strict=True)
    ]
    # A key's bias moves all scores of a query alike: it has no gradient.
    assert sum(moved) >= len(moved) - 1
    assert set(logs[0]) == {
        *("loss", "reward", "kl", "clipped"),
        *("advantage_std", "answer_length", "equal_groups"),
    }
    assert logs[0]["kl"] < 1e-9 < logs[1]["kl"]
    assert all(1 <= row["answer_length"] <= 4 for row in logs)
    assert 0 < logs[0]["reward"] < 1 and 0 <= logs[0]["equal_groups"] < 1


@pytest.mark.parametrize("trains", [("vision_projector", "vision_resampler"), (VISION,)])
def test_gradients_reach_what_lies_before_the_decoder(trains):
    model = ghostvis(*trains)
    before = values(model.trainable_variables)
    tiny_trainer(model).train_step(samples())
    moved = [
        not np.array_equal(old, new)
        for old, new in zip(before, values(model.trainable_variables), strict=True)
    ]
    assert sum(moved) > 0.8 * len(moved)


@pytest.mark.parametrize("trains", [(LANGUAGE,), (LANGUAGE, PROJECTION)])
def test_each_different_image_is_encoded_once_in_a_step(trains, monkeypatch):
    trainer = tiny_trainer(ghostvis(*trains), updates=2)
    calls = Counter()
    encode = trainer._encoder.predict_on_batch

    def counting(pixels):
        calls["calls"] += 1
        calls["images"] += len(pixels)
        return encode(pixels)

    monkeypatch.setattr(trainer._encoder, "predict_on_batch", counting)
    monkeypatch.setattr(
        trainer.model.generation_engine(), "encode", lambda images: pytest.fail("encoded again")
    )
    # Any other run of the encoder, or its part in a program that is compiled now, is a call too.
    inner = type(trainer.model.vision_encoder).call

    def seen(self, *args, **kwargs):
        calls["layer"] += 1
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(type(trainer.model.vision_encoder), "call", seen)
    trainer.train_step(samples())
    assert calls == {"calls": 1, "images": 2, "layer": 1}


def test_marks_of_images_are_never_drawn():
    model = ghostvis(LANGUAGE)
    model.language_decoder.norm.scale.assign(np.zeros(16, "float32"))
    drawn = []
    trainer = tiny_trainer(model, num_samples=8, rate=0.0)
    draw = trainer._draw

    def keeping(*args):
        ids, mask = draw(*args)
        drawn.append(ids[mask])
        return ids, mask

    trainer._draw = keeping
    for _ in range(8):
        trainer.train_step(samples())
    ids = np.concatenate(drawn)
    # Each of the 129 ids is as likely as the others here, but for the placeholder.
    assert len(ids) > 800 and len(set(ids)) > 115
    assert IMAGE_ID not in ids


def test_held_out_rewards_of_draws_and_of_the_likeliest_answers():
    def length(question, answer):
        return float(len(answer))

    trainer = tiny_trainer(ghostvis(), reward=length, temperature=8.0)
    drawn = [trainer.mean_reward(samples(), drawn=True) for _ in range(2)]
    assert drawn[0] == drawn[1] != trainer.mean_reward(samples())


def test_the_answers_of_a_group_differ_and_can_be_had_again():
    def answers(seed):
        trainer = tiny_trainer(ghostvis(), seed=seed)
        prompts = read_questions(trainer.model.processor, model_questions())
        _, embeds = trainer._encode(prompts.pixels)
        return trainer._draw(prompts.repeated(4), embeds)[0]

    first = answers(0)
    np.testing.assert_array_equal(first, answers(0))
    assert (first != answers(1)).any()
    groups = first.reshape(-1, 4, first.shape[1])
    assert all(len({tuple(row) for row in group}) > 1 for group in groups)


def test_the_reward_rises():
    trainer = tiny_trainer(ghostvis(LANGUAGE, PROJECTION), rate=2e-2, num_samples=8)
    rewards = [trainer.train_step(samples())["reward"] for _ in range(20)]
    assert np.mean(rewards[:3]) < 0.7
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.25
    assert trainer.mean_reward(samples()) > 0.9
    drawn = trainer.mean_reward(samples() * 8, drawn=True)
    assert 0.5 < drawn and drawn == trainer.mean_reward(samples() * 8, drawn=True)


def test_several_updates_share_the_draws_and_are_clipped():
    trainer = tiny_trainer(ghostvis(), rate=0.1, updates=3, clip_epsilon=0.01)
    logs = trainer.train_step(samples()[:2])
    assert trainer.step == 1 and logs["clipped"] > 0.5
    alone = tiny_trainer(ghostvis(), rate=0.1, clip_epsilon=0.01).train_step(samples()[:2])
    assert alone["clipped"] == 0


def test_a_model_is_saved_and_read_again(tmp_path):
    trainer = tiny_trainer(ghostvis())
    trainer.train_step(samples())
    trainer.save(tmp_path / "new" / "model.keras")
    again = keras.saving.load_model(tmp_path / "new" / "model.keras")
    for old, new in zip(values(trainer.model.variables), values(again.variables), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 1}, "num_samples=1 must be at least 2"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"updates": 0}, "updates=0 must be at least 1"),
        ({"temperature": 0.0}, "temperature=0.0 and clip_epsilon"),
        ({"kl_coef": -1.0}, "kl_coef=-1.0 at least 0"),
    ],
)
def test_wrong_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_trainer(ghostvis(), **options)


def test_a_model_that_cannot_learn_is_refused():
    model = ghostvis(LANGUAGE, VISION)
    model.trainable = False
    with pytest.raises(ValueError, match="All weights are frozen"):
        tiny_trainer(model)
    model.trainable = True
    model.processor = None
    with pytest.raises(ValueError, match=r"set model\.processor"):
        tiny_trainer(model)


def test_steps_without_images_or_questions():
    trainer = tiny_trainer(ghostvis())
    assert np.isfinite(trainer.train_step(samples()[-1:])["loss"])
    with pytest.raises(ValueError, match="at least one question"):
        trainer.train_step([])
    with pytest.raises(ValueError, match=r"finite rewards"):
        tiny_trainer(ghostvis(), reward=lambda question, answer: np.nan).train_step(samples())
