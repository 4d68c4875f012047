"""Adapters in the layout of Hugging Face's PEFT, for models that transformers runs."""

import os

import keras

from dl_techniques.checkpoints.adapter_files import pending, write_files
from dl_techniques.checkpoints.adapters import checked_settings, trained_weights
from dl_techniques.checkpoints.exporting import DECODER_CLASSES
from dl_techniques.checkpoints.key_map import KeyMap, bind, listed, variables_of
from dl_techniques.checkpoints.loading import key_map_of
from dl_techniques.checkpoints.transforms import TRANSFORMS
from dl_techniques.models.lora import adapters, lora_layers

PREFIX = "base_model.model."


def export_peft(
    model: keras.Model,
    folder: str | os.PathLike,
    key_map: KeyMap | str,
    base_model: str = "",
) -> None:
    """Write the adapters, and all that was trained with them, as `PeftModel.from_pretrained` reads.

    PEFT's layers compute x W + alpha / rank (x A) B as ours do, so that its model answers as this
    one does. Its base is what `export_smolvlm` or `export_decoder` wrote before the training.

    Args:
        model: A model after `enable_lora`.
        folder: Made where it does not exist; adapters in it are replaced.
        key_map: "smolvlm" for the whole model, "llama" or "qwen2" for its decoder alone.
        base_model: The base's folder or hub name, for the reader.

    Raises:
        ValueError: naming all that PEFT has no place for: adapters or trained weights outside the
            part that is exported, embeddings, biases of layers with adapters, quantized kernels.
            Nothing is written then.
    """
    settings = checked_settings(model)
    if any(layer.quantization_mode for layer in lora_layers(model)):
        raise ValueError(
            "The adapters were trained on quantized kernels, which transformers would round "
            "otherwise: dequantize_base(model), merge_lora(model), and export the whole model."
        )
    key_map = key_map_of(key_map)
    is_decoder = key_map.name in DECODER_CLASSES
    modules = _Modules(model, model.language_decoder if is_decoder else model, key_map)
    tensors, targets, saved, problems = [], [], {}, []
    for layer in lora_layers(model):
        name = modules.linear(layer._kernel)
        if name is None:
            problems.append(f"{layer.path}: no linear layer of {key_map.name}")
            continue
        targets.append(name)
        for letter, matrix in (("A", layer.lora_kernel_a), ("B", layer.lora_kernel_b)):
            key = f"{PREFIX}{name}.lora_{letter}.weight"
            tensors.append(pending(key, matrix, transpose=True))
    weights = variables_of(model)
    for path in trained_weights(model):
        name = modules.of(weights[path])
        if name is None or name in targets:
            problems.append(f"{path}: PEFT cannot save it beside adapters of {key_map.name}")
        else:
            saved[name] = modules.weights(name)
    if problems:
        raise ValueError(listed(f"{model.name} does not fit PEFT's layout", problems))
    for parts in saved.values():
        tensors += [pending(PREFIX + key, weight, turned) for key, weight, turned in parts]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if is_decoder else None,
        "base_model_name_or_path": base_model,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": targets,
        "modules_to_save": sorted(saved) or None,
        "inference_mode": True,
    }
    write_files(folder, tensors, config)


class _Modules:
    """The modules of PyTorch's model that hold our weights; those that are changed are left out."""

    def __init__(self, model, owner, key_map):
        matrices = {id(matrix) for matrix in adapters(model)}
        weights = {p: w for p, w in variables_of(owner).items() if id(w) not in matrices}
        self._weights, self._modules, changed = {}, {}, set()
        for binding in bind(key_map, weights):
            key = binding.keys[0]
            turned = binding.transform is TRANSFORMS["transpose"]
            if binding.is_vocabulary or not (turned or binding.transform is TRANSFORMS["same"]):
                changed.add(key.rpartition(".")[0])
            self._weights[id(weights[binding.paths[0]])] = (
                key,
                weights[binding.paths[0]],
                turned,
            )
        for key, weight, turned in self._weights.values():
            name = key.rpartition(".")[0]
            if name not in changed:
                self._modules.setdefault(name, []).append((key, weight, turned))

    def of(self, weight) -> str | None:
        """Return the name of the module that holds a weight."""
        name = self._weights.get(id(weight), ("",))[0].rpartition(".")[0]
        return name if name in self._modules else None

    def linear(self, kernel) -> str | None:
        """Return the name of the linear layer whose matrix a kernel is."""
        name = self.of(kernel)
        return name if name is not None and self._weights[id(kernel)][2] else None

    def weights(self, name: str) -> list[tuple]:
        """Return (key, weight, whether its axes are turned) of everything in a module."""
        return self._modules[name]
