"""Policy: a vision-language model as what drew an answer's tokens, and its compiled step."""

import contextlib

import keras
import numpy as np
from keras import ops

from dl_techniques.datasets.rows import IGNORE_INDEX
from dl_techniques.losses.nanovlm_loss import token_losses
from dl_techniques.training.grpo_loss import grpo_loss, kl_terms, masked_mean, ratios

_NEVER = -1e30  # A logit; finite, so that no gradient becomes NaN.


class Policy(keras.Model):
    """Log-probabilities of given answers, and the step that changes them.

    They are those of the distribution from which answers are drawn: of all ids but the model's
    `image_mark_ids` and those that its tokenizer lacks, at a temperature, without dropout.
    Compiled with an optimizer, `train_on_batch(inputs, targets)` minimises `grpo_loss`; frozen
    weights stay as they are.

    What the images are given as depends on what trains, so that nothing is computed twice which
    the step cannot change, and gradients reach all that trains:

    =========== ============================ ==================================================
    vision_form trains                       `vision`
    =========== ============================ ==================================================
    "embeds"    at most the decoder          float[M, T, D], what the decoder reads
    "tokens"    the modality projection too  float[M, N, D], the vision encoder's tokens
    "pixels"    the vision encoder too       float[M, H, W, 3]
    =========== ============================ ==================================================

    Call argument `inputs`: see `policy_inputs`. Each of the M different tiles is encoded once,
    and given to all rows that have it.

    Call argument of steps, `targets`: `advantages` float32[R], `reference` float32[R, N], and `old`
    float32[R, N], the log-probabilities with which the tokens were drawn; without it, those of
    this step.

    Args:
        model: A `VisionLanguageModel`.
        temperature: Logits are divided by it.
        clip_epsilon, kl_coef: See `grpo_loss`.

    Returns:
        float32[R, N]; 0 where there is no token.
    """

    def __init__(self, model, temperature: float = 1.0, clip_epsilon=0.2, kl_coef=0.04):
        super().__init__(name="policy", dtype=model.dtype_policy)
        self.model = model
        self.temperature = temperature
        self.clip_epsilon = clip_epsilon
        self.kl_coef = kl_coef
        self.vision_form = vision_form(model)
        self.jit_compile = _jit_compile()
        self._kl = keras.metrics.Mean(name="kl")
        self._clipped = keras.metrics.Mean(name="clipped")
        self.built = True

    def build(self, input_shape=None):
        """Do nothing: the model is built."""

    def call(self, inputs):
        """Return the log-probability of each token of the answers."""
        model, answers = self.model, inputs["answers"]
        names = ("text_tokens", "attention_mask", "num_images")
        batch = {name: inputs[name] for name in names if name in inputs}
        if "vision" in inputs:
            embeds = self._embeds(inputs["vision"])
            batch["vision_embeds"] = ops.take(embeds, inputs["image_index"], axis=0)
        states = model.language_decoder(
            **model.embed(batch, training=False), return_hidden=True, training=False
        )
        # The token at position t is predicted at t - 1; the answers are the last positions.
        states = states[:, -(ops.shape(answers)[1] + 1) : -1]
        logits = model.language_decoder.token_embedding(states, reverse=True)
        logits = ops.cast(logits, "float32") / self.temperature
        never = np.zeros(model.vocab_size, bool)
        never[list(model.image_mark_ids)] = True
        known_ids = model.generation_engine().known_ids
        never[model.vocab_size if known_ids is None else known_ids :] = True
        if never.any():
            logits = ops.where(never, _NEVER, logits)
        return -token_losses(logits, answers, ignore_index=IGNORE_INDEX)

    def _embeds(self, vision):
        if self.vision_form == "embeds":
            return vision
        tokens = vision
        if self.vision_form == "pixels":
            tokens = self.model.vision_encoder(vision, training=False)
        return self.model.modality_projection(tokens)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Return `grpo_loss` of the log-probabilities that `call` gave."""
        arrays = (y_pred, _old(y, y_pred), y["reference"], y["advantages"], _mask(x))
        return grpo_loss(*arrays, self.clip_epsilon, self.kl_coef)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Return `loss`, `kl` (before the step) and `clipped`, the share of clipped tokens."""
        mask, reference = _mask(x), ops.convert_to_tensor(y["reference"])
        self._kl.update_state(masked_mean(kl_terms(y_pred, reference), mask))
        far = ops.abs(ratios(y_pred, _old(y, y_pred)) - 1.0) > self.clip_epsilon
        self._clipped.update_state(masked_mean(ops.cast(far, "float32"), mask))
        return self.get_metrics_result()


class Part(keras.Model):
    """A layer of a model as a compiled function of a batch: its `predict_on_batch`.

    Args:
        layer: A built layer of one argument.
    """

    def __init__(self, layer: keras.layers.Layer):
        super().__init__(dtype=layer.dtype_policy)
        self.layer = layer
        self.jit_compile = _jit_compile()
        self.built = True

    def build(self, input_shape=None):
        """Do nothing: the layer is built."""

    def call(self, inputs):
        """Return what the layer gives."""
        return self.layer(inputs)


class Reference:
    """The values that trainable weights have now; frozen ones need no second copy.

    Args:
        model: A model.
    """

    def __init__(self, model: keras.Model):
        self._variables = list(model.trainable_variables)
        self._values = [_copied(variable.value) for variable in self._variables]

    @contextlib.contextmanager
    def in_the_model(self):
        """Put the values into the weights inside this context, then the weights' own back."""
        own = [_copied(variable.value) for variable in self._variables]
        try:
            self._assign(self._values)
            yield
        finally:
            self._assign(own)

    def _assign(self, values):
        for variable, value in zip(self._variables, values, strict=True):
            # On JAX a compiled step uses up what the variables hold.
            variable.assign(_copied(value))


def vision_form(model) -> str:
    """Return as what a policy is given images; see `Policy`."""
    if model.vision_encoder.trainable_variables:
        return "pixels"
    return "tokens" if model.modality_projection.trainable_variables else "embeds"


def _jit_compile() -> bool:
    # On TensorFlow XLA would compile anew for each bucket of shapes, where one graph does for all.
    return keras.backend.backend() == "jax"


def _old(targets, logprobs):
    given = targets.get("old")
    return ops.stop_gradient(logprobs) if given is None else ops.convert_to_tensor(given)


def _mask(inputs):
    return ops.cast(ops.not_equal(inputs["answers"], IGNORE_INDEX), "float32")


def _copied(value):
    return ops.stop_gradient(ops.copy(value))
