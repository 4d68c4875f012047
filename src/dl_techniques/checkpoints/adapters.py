"""Adapters in a folder of their own: all that was trained, and the digest of what was not."""

import dataclasses
import os
import pathlib

import keras

from dl_techniques.checkpoints.adapter_files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterConfig,
    describe_weights,
    pending,
    read_config,
    write_files,
)
from dl_techniques.checkpoints.key_map import listed, variables_of
from dl_techniques.checkpoints.safetensors_io import FLOATS, Checkpoint
from dl_techniques.models.layer_changes import can_train, dense_layers, kernel_shape
from dl_techniques.models.lora import (
    LoraSettings,
    adapters,
    add_adapters,
    lora_layers,
    lora_settings,
    merge_lora,
    open_weights,
)


def save_adapters(model: keras.Model, folder: str | os.PathLike) -> None:
    """Write the adapters and every other weight that was trained with them.

    The folder gets `adapter_model.safetensors` and `adapter_config.json`; other files in it stay.
    After an error it is as it was.

    Args:
        model: A model after `enable_lora`.
        folder: Made where it does not exist; adapters in it are replaced.

    Raises:
        ValueError: if the model has no adapters, or a kernel that an adapter stands beside was
            opened for training: it would be lost.
        OSError: if the folder cannot be written.
    """
    settings = checked_settings(model)
    weights, matrices = variables_of(model), _ids(adapters(model))
    trained = trained_weights(model)
    saved = {p: w for p, w in weights.items() if id(w) in matrices or p in trained}
    config = AdapterConfig(
        type(model).__name__,
        settings.pattern,
        settings.rank,
        settings.alpha,
        layers=list(adapted_layers(model)),
        trained=trained,
        base=describe_weights({p: w for p, w in weights.items() if p not in saved}),
    )
    tensors = [pending(path, weight) for path, weight in saved.items()]
    write_files(folder, tensors, dataclasses.asdict(config))


def load_adapters(model: keras.Model, folder: str | os.PathLike, merge: bool = False) -> list[str]:
    """Put saved adapters, and what was trained with them, onto the base that they were trained on.

    All of it trains on afterwards, and nothing else; compile the model first.

    Args:
        model: The base, quantized as it was for the training; or with adapters of the same layers
            and rank, which are replaced.
        folder: What `save_adapters` wrote.
        merge: Whether to add the adapters to the kernels (`merge_lora`).

    Returns:
        The layers' paths.

    Raises:
        ValueError: naming all that does not fit: another base, rank, shape or class of model,
            missing or unexpected tensors, damaged files. Nothing is changed then.
    """
    folder = pathlib.Path(folder)
    config = read_config(folder / CONFIG_FILE)
    with Checkpoint(folder / WEIGHTS_FILE) as checkpoint:
        problems = _model_problems(model, config, merge)
        problems += _tensor_problems(model, config, checkpoint)
        if problems:
            raise ValueError(listed(f"{folder} does not fit {model.name}", problems))
        by_path = _dense_by_path(model)
        layers = [by_path[path] for path in config.layers]
        if not lora_layers(model):
            add_adapters(model, layers, LoraSettings(config.pattern, config.rank, config.alpha))
        weights = variables_of(model)
        for key in checkpoint.keys():
            weights[key].assign(checkpoint.read(key, weights[key].dtype))
            checkpoint.forget()
        open_weights(model, [weights[key] for key in checkpoint.keys()])
    if merge:
        merge_lora(model)
    return [layer.path for layer in layers]


def checked_settings(model: keras.Model) -> LoraSettings:
    """Return the settings of a model whose adapters can be saved.

    Raises:
        ValueError: see `save_adapters`.
    """
    layers, settings = lora_layers(model), lora_settings(model)
    if not layers:
        raise ValueError(f"{model.name} has no LoRA adapters: enable_lora(model) first.")
    told = settings and (settings.rank, settings.alpha)
    other = [layer.path for layer in layers if (layer.lora_rank, layer.lora_alpha) != told]
    if other:
        raise ValueError(
            f"The adapter of {other[0]} does not come from enable_lora(model, ...), which alone "
            "keeps account of what is trained: use it instead of the layer's own method."
        )
    opened = [layer.path for layer in layers if layer._kernel.trainable]
    if opened:
        raise ValueError(
            f"{len(opened)} kernels with adapters are trainable, first that of {opened[0]}: what "
            "they learn would be lost. Say what to train with train_only(model, patterns)."
        )
    return settings


def adapted_layers(model: keras.Model) -> dict[str, keras.layers.Dense]:
    """Return the layers with adapters by their path below the model."""
    return {p: layer for p, layer in _dense_by_path(model).items() if layer.lora_enabled}


def trained_weights(model: keras.Model) -> list[str]:
    """Return the paths below the model of all but the adapters that train, or once did."""
    matrices, opened = _ids(adapters(model)), lora_settings(model).opened
    return [
        path
        for path, weight in variables_of(model).items()
        if id(weight) not in matrices and (weight.trainable or weight.path in opened)
    ]


def _ids(variables) -> set[int]:
    """Return what tells variables apart: their `==` compares values."""
    return {id(variable) for variable in variables}


def _dense_by_path(model) -> dict[str, keras.layers.Dense]:
    path_of = {id(weight): path for path, weight in variables_of(model).items()}
    return {path_of[id(d._kernel)].removesuffix("/kernel"): d for d in dense_layers(model)}


def _model_problems(model, config, merge) -> list[str]:
    problems = []
    if config.model_class != type(model).__name__:
        problems.append(f"adapters of a {config.model_class}, not of a {type(model).__name__}")
    present, by_path, weights = adapted_layers(model), _dense_by_path(model), variables_of(model)
    if present and set(present) != set(config.layers):
        differing = sorted(set(present) ^ set(config.layers))
        problems.append(
            f"adapters of {len(config.layers)} layers, the model has {len(present)}; first that "
            f"only one has: {differing[0]}"
        )
    told = lora_settings(model)
    if told and (told.rank, told.alpha) != (config.rank, config.alpha):
        problems.append(
            f"rank={config.rank} and alpha={config.alpha:g}, the model has rank={told.rank} and "
            f"alpha={told.alpha:g}"
        )
    unknown = [path for path in config.layers if path not in by_path]
    problems += [f"{path}: the model has no such Dense layer" for path in unknown]
    quantized = [p for p in config.layers if p in by_path and by_path[p].quantization_mode]
    if merge and quantized:
        problems.append(
            f"{quantized[0]}: is quantized, so merge=True is impossible: load_adapters(...), "
            "dequantize_base(model), merge_lora(model)"
        )
    trainable = _ids(can_train(model))
    for path in config.trained:
        if path not in weights or id(weights[path]) not in trainable:
            problems.append(f"{path}: the model has no such weight that can train")
    matrices, trained = _ids(adapters(model)), set(config.trained)
    base = describe_weights(
        {p: w for p, w in weights.items() if id(w) not in matrices and p not in trained}
    )
    if base != config.base:
        problems.append(
            f"another base: digest {config.base['digest']} of {config.base['dtypes']}, the "
            f"model's is {base['digest']} of {base['dtypes']}"
        )
    return problems


def _tensor_problems(model, config, checkpoint) -> list[str]:
    by_path, weights = _dense_by_path(model), variables_of(model)
    shapes = {path: tuple(weights[path].shape) for path in config.trained if path in weights}
    names = set(config.trained)
    for path in config.layers:
        pair = (f"{path}/lora_kernel_a", f"{path}/lora_kernel_b")
        names.update(pair)
        if path in by_path:
            rows, columns = kernel_shape(by_path[path])
            shapes |= zip(pair, ((rows, config.rank), (config.rank, columns)), strict=True)
    problems = [f"{key}: missing" for key in sorted(names - set(checkpoint.keys()))]
    for key in sorted(checkpoint.keys()):
        if key not in names:
            problems.append(f"{key}: unexpected, shape {checkpoint.shape(key)}")
        elif checkpoint.dtype(key) not in FLOATS:
            problems.append(f"{key}: dtype {checkpoint.dtype(key)}, expected a float")
        elif key in shapes and checkpoint.shape(key) != shapes[key]:
            problems.append(f"{key}: shape {checkpoint.shape(key)}, expected {shapes[key]}")
    return problems
