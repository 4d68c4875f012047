"""Greedy decoding with a key-value cache: one prefill, then one compiled step per token."""

import keras
import numpy as np
from keras import ops


def greedy_decode(model, inputs, max_new_tokens: int, stop_ids: tuple, pad_token_id: int):
    """Return int32[B, max_new_tokens]; see `VisionLanguageModel.generate`."""
    if not isinstance(inputs, dict):
        inputs = {"text_tokens": inputs}
    model.batch_checks.check(inputs)
    if not 0 <= pad_token_id < model.vocab_size or pad_token_id == model.image_token_id:
        raise ValueError(
            f"pad_token_id={pad_token_id} must lie in [0, vocab_size={model.vocab_size}) and not "
            f"be the image placeholder {model.image_token_id}."
        )
    inputs, prompt_length = _left_padded(inputs, pad_token_id)
    if model.fusion == "prefix" and inputs.get("images") is not None:
        images = inputs["images"]
        slots = images.shape[1] if len(images.shape) == 5 else 1
        tokens = model.count_image_tokens(*images.shape[-3:-1]) if slots else 0
        prompt_length += slots * tokens
    total = prompt_length + max_new_tokens
    limit = model.language_decoder.max_positions
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1.")
    if total > limit:
        raise ValueError(
            f"{prompt_length} prompt positions + max_new_tokens={max_new_tokens} are more than "
            f"max_positions={limit}: shorten the prompts or ask for fewer tokens."
        )
    prefill, step = _compiled(model, max_new_tokens)
    token, state = prefill(inputs)
    ended = np.zeros(len(inputs["text_tokens"]), dtype=bool)
    new_ids = np.full((len(ended), max_new_tokens), pad_token_id, dtype="int32")
    for i in range(max_new_tokens):
        ids = ops.convert_to_numpy(token)
        new_ids[:, i] = np.where(ended, pad_token_id, ids)
        ended |= np.isin(ids, stop_ids)
        if ended.all() or i + 1 == max_new_tokens:
            break
        token, state = step(token, state, np.int32(prompt_length + i))
    return new_ids


def _left_padded(inputs: dict, pad_token_id: int):
    """Move every row's padding to the left, so that all rows end in the same slot."""
    tokens = np.asarray(inputs["text_tokens"])
    mask = inputs.get("attention_mask")
    mask = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask, bool)
    order = np.argsort(mask, axis=1, kind="stable")
    mask = np.take_along_axis(mask, order, axis=1)
    tokens = np.where(mask, np.take_along_axis(tokens, order, axis=1), pad_token_id)
    refused = {"segment_ids", "positions", "turn_ids"} & set(inputs)
    if refused:
        raise ValueError(f"Prompts cannot be packed: remove {sorted(refused)}.")
    moved = {"text_tokens": tokens.astype("int32"), "attention_mask": mask}
    return {**inputs, **moved}, tokens.shape[1]


def _compiled(model, max_new_tokens):
    """Return the compiled (prefill, step) of this model, made once per cache size."""
    compiled = model.__dict__.setdefault("_compiled_decoding", {})
    if max_new_tokens not in compiled:
        compile_function = {"jax": _jit, "tensorflow": _tf_function, "torch": _no_grad}
        wrap = compile_function[keras.backend.backend()]
        compiled[max_new_tokens] = (
            wrap(model, lambda inputs: _prefill(model, inputs, max_new_tokens)),
            wrap(model, lambda token, state, index: _step(model, token, state, index)),
        )
    return compiled[max_new_tokens]


def _prefill(model, inputs, max_new_tokens):
    fused = model.embed(inputs)
    for name in ("segment_ids", "positions", "turn_ids"):
        fused.pop(name)
    batch, length = ops.shape(fused["inputs"])[:2]
    cache = model.language_decoder.make_cache(batch, length + max_new_tokens)
    new = ((0, 0), (0, max_new_tokens))
    mask = ops.pad(fused.pop("attention_mask"), new, constant_values=True)
    if "image_ids" in fused:
        fused["image_ids"] = ops.pad(fused["image_ids"], new)
    hidden, cache = model.language_decoder(
        **fused, attention_mask=mask, cache=cache, cache_index=0, return_hidden=True
    )
    logits = model.language_decoder.token_embedding(hidden[:, -1], reverse=True)
    return _next(model, logits), (cache, mask)


def _step(model, token, state, index):
    cache, mask = state
    logits, cache = model.language_decoder(
        ops.expand_dims(token, 1), attention_mask=mask, cache=cache, cache_index=index
    )
    return _next(model, logits[:, 0]), (cache, mask)


def _next(model, logits):
    if model.image_token_id is not None:
        forbidden = ops.arange(model.vocab_size) == model.image_token_id
        logits = ops.where(forbidden, -float("inf"), ops.cast(logits, "float32"))
    return ops.cast(ops.argmax(logits, axis=-1), "int32")


def _jit(model, function):
    """Compile with the weights as arguments, so that later training is seen."""
    import jax

    variables = model.variables

    @jax.jit
    def pure(values, *args):
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function(*args)

    return lambda *args: pure([v.value for v in variables], *args)


def _tf_function(model, function):
    import tensorflow as tf

    return tf.function(function, reduce_retracing=True)


def _no_grad(model, function):
    import torch

    def call(*args):
        with torch.no_grad():
            return function(*args)

    return call
