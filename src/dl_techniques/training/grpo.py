"""GRPOTrainer: learns from rewards of a model's own answers, after supervised training.

Group-relative policy optimisation: https://arxiv.org/abs/2402.03300.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from dl_techniques.evaluation.question_answering import answer_questions
from dl_techniques.generation.buckets import bucket, pad_to
from dl_techniques.generation.sampling import GREEDY, Sampler
from dl_techniques.optimization import optimizer_builder
from dl_techniques.preprocessing.chat_template import decode_answer
from dl_techniques.training.grpo_batches import (
    Prompts,
    answer_mask,
    fill_rows,
    policy_inputs,
    prompt_inputs,
    questions_of,
    read_questions,
)
from dl_techniques.training.grpo_loss import group_advantages
from dl_techniques.training.grpo_policy import Part, Policy, Reference
from dl_techniques.training.rewards import question_reward
from dl_techniques.training.training_state import save_model

OPTIMIZER = {"type": "adamw", "weight_decay": 0.0, "gradient_clipping_by_norm": 1.0}
LEARNING_RATE = 1e-6


class GRPOTrainer:
    """Draws a group of answers to each question, and makes likelier those that beat their group.

    What trains is what is trainable when the trainer is made (see `train_only`); the values that it
    has then are the reference, and the only second copy of weights. Each different image of a step
    goes through the vision encoder once, and once more inside of the step where the encoder itself
    trains (see `Policy`).

    Args:
        model: A `VisionLanguageModel` with a processor, after supervised training.
        optimizer: Any Keras optimizer; default: AdamW at 1e-6, clipped to a norm of 1.
        reward: (question, answer) -> number, where a question is a dict with `question`,
            `references` and `kind`; default: `question_reward`.
        num_samples: G, the answers in a group, at least 2.
        temperature: Of the draws, and of the distribution that is trained.
        kl_coef: What the divergence from the reference counts for.
        clip_epsilon: How far an update may change a token's probability, as a share of it.
        max_new_tokens: The longest answer, in tokens.
        updates: Steps of the optimizer for each group of answers; the ratios differ from 1, and may
            be clipped, from the second on.
        seed: Of the draws.

    Attributes:
        step: How many steps were made.
        policy: The compiled `Policy`.

    Raises:
        ValueError: a number out of range, a model without processor, or nothing that trains.
    """

    def __init__(
        self,
        model,
        optimizer: keras.optimizers.Optimizer | None = None,
        *,
        reward: Callable[[Mapping[str, Any], str], float] = question_reward,
        num_samples: int = 8,
        temperature: float = 1.0,
        kl_coef: float = 0.04,
        clip_epsilon: float = 0.2,
        max_new_tokens: int = 16,
        updates: int = 1,
        seed: int = 0,
    ):
        for name, value, least in (
            ("num_samples", num_samples, 2),
            ("max_new_tokens", max_new_tokens, 1),
            ("updates", updates, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}.")
        if not (temperature > 0 and kl_coef >= 0 and clip_epsilon > 0):
            raise ValueError(
                f"temperature={temperature} and clip_epsilon={clip_epsilon} must be > 0 and "
                f"kl_coef={kl_coef} at least 0."
            )
        if model.processor is None:
            raise ValueError("GRPO asks questions as text: set model.processor.")
        if not model.trainable_variables:
            raise ValueError("All weights are frozen: see train_only for what is to be trained.")
        self.model = model
        self.reward = reward
        self.num_samples = num_samples
        self.max_new_tokens = max_new_tokens
        self.updates = updates
        self.seed = seed
        self.step = 0
        self.policy = Policy(model, temperature, clip_epsilon, kl_coef)
        self.policy.compile(
            optimizer=optimizer or optimizer_builder(OPTIMIZER, LEARNING_RATE),
            jit_compile=self.policy.jit_compile,
        )
        self._sampler = Sampler(temperature=temperature, top_k=0)
        self._reference = Reference(model)
        self._encoder = Part(model.vision_encoder)
        self._projection = Part(model.modality_projection)

    def train_step(self, samples: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Answer every question of some samples, and learn from the rewards.

        Args:
            samples: Rows with images, questions and accepted answers (see `make_sample`).

        Returns:
            `loss`, `reward` (the mean), `kl` (to the reference, before the step, in nats per
            token), `advantage_std`, `answer_length` (tokens), `equal_groups` (the share of
            questions whose answers were all as good, which teach nothing) and `clipped` (the share
            of tokens); `loss`, `kl` and `clipped` are those of the last update.

        Raises:
            FloatingPointError: if the loss is not finite.
            ValueError: malformed samples; a reward that is not finite.
        """
        questions, group = questions_of(samples), self.num_samples
        prompts = read_questions(self.model.processor, questions)
        vision, embeds = self._encode(prompts.pixels)
        prompts = prompts.repeated(group)
        ids, mask = self._draw(prompts, embeds)
        rewards = self._rewards(questions, ids)
        advantages = group_advantages(rewards)
        pad_id = self.model.processor.pad_token_id
        inputs = policy_inputs(self.model, prompts, vision, ids, mask, pad_id, group)
        logs = self._update(inputs, advantages)
        self.step += 1
        if not np.isfinite(logs["loss"]):
            raise FloatingPointError(f"The loss is {logs['loss']} at step {self.step}.")
        return {
            **logs,
            "reward": float(rewards.mean()),
            "advantage_std": float(advantages.std()),
            "answer_length": float(mask.sum(axis=1).mean()),
            "equal_groups": float((advantages == 0).all(axis=1).mean()),
        }

    def mean_reward(
        self, samples: Sequence[dict[str, Any]], batch_size: int = 64, drawn: bool = False
    ) -> float:
        """Return the mean reward of an answer to every question of some samples.

        Args:
            samples: As in `train_step`.
            batch_size: Questions at a time.
            drawn: Draw the answers as in training, with the same numbers in every call; else take
                the likeliest ones.
        """
        questions_of(samples)  # Malformed ones are refused before any is answered.
        answered = answer_questions(
            self.model,
            samples,
            batch_size,
            self.max_new_tokens,
            sampler=self._sampler if drawn else GREEDY,
            seed=self.seed,
        )
        return float(np.mean([self.reward(vars(item), item.answer) for item in answered]))

    def _encode(self, pixels):
        """Return (what the policy takes for M tiles, what the decoder reads), or (None, None)."""
        if pixels is None:
            return None, None
        padded = pad_to(pixels, bucket(len(pixels)), 0)
        tokens = self._encoder.predict_on_batch(padded)
        embeds = np.asarray(self._projection.predict_on_batch(tokens), "float32")
        forms = {"pixels": pixels, "tokens": tokens[: len(pixels)], "embeds": embeds[: len(pixels)]}
        return forms[self.policy.vision_form], forms["embeds"]

    def _draw(self, prompts: Prompts, embeds):
        """Return int32[R, N], an answer to each prompt, and bool[R, N], where it has tokens."""
        model, processor = self.model, self.model.processor
        inputs = prompt_inputs(prompts, processor.pad_token_id)
        if embeds is not None:
            inputs["vision_embeds"] = ops.convert_to_tensor(
                embeds[prompts.index], dtype=model.compute_dtype
            )
            inputs["num_images"] = prompts.counts
        source = np.random.SeedSequence([self.seed, self.step])
        seeds = (source.generate_state(len(prompts.ids), "uint64") >> np.uint64(1)).astype("int64")
        stop_ids = {*model.stop_ids, *processor.stop_ids}
        ids = model.generate(
            inputs, self.max_new_tokens, self._sampler, stop_ids=stop_ids, seed=seeds
        )
        return ids, answer_mask(ids, stop_ids)

    def _rewards(self, questions, ids) -> np.ndarray:
        """Return float64[Q, G] for int32[Q * G, N] answers."""
        processor, group = self.model.processor, self.num_samples
        rewards = np.empty((len(questions), group))
        for row, answer in enumerate(ids):
            text = decode_answer(answer.tolist(), processor.tokenizer, processor.template)
            rewards[divmod(row, group)] = self.reward(questions[row // group], text)
        return rewards

    def _update(self, inputs, advantages) -> dict[str, float]:
        rows = len(inputs["answers"])
        targets = {"advantages": fill_rows(advantages.reshape(-1), rows)}
        with self._reference.in_the_model():
            targets["reference"] = self.policy.predict_on_batch(inputs)
        if self.updates > 1:
            targets["old"] = self.policy.predict_on_batch(inputs)
        for _ in range(self.updates):
            logs = self.policy.train_on_batch(inputs, targets, return_dict=True)
        return {name: float(logs[name]) for name in ("loss", "kl", "clipped")}

    def save(self, path: str | Path) -> None:
        """Write the model as a `.keras` file, without the state of its optimizer."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if getattr(self.model, "optimizer", None) is None:
            self.model.save(path)
        else:
            save_model(self.model, Path(path))
