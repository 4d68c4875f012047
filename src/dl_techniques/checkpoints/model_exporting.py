"""Writes whole models as folders that transformers (SmolVLM, Idefics3) and nanoVLM load."""

import copy
import os
from collections.abc import Sequence

from dl_techniques.checkpoints.companion_files import (
    write_smolvlm_files,
    write_tokenizer,
)
from dl_techniques.checkpoints.exporting import write_model
from dl_techniques.checkpoints.image_normalisation import fold_normalisation
from dl_techniques.checkpoints.model_card import write_model_card
from dl_techniques.checkpoints.nanovlm_config import nanovlm_from_config
from dl_techniques.checkpoints.nanovlm_processor import nanovlm_processor_fields
from dl_techniques.checkpoints.smolvlm_config import smolvlm_from_config
from dl_techniques.checkpoints.staging import staged
from dl_techniques.checkpoints.vocabulary import grown_vocabulary
from dl_techniques.layers.modality_projection import ModalityProjection
from dl_techniques.layers.rotary_embedding import rotary_frequencies
from dl_techniques.preprocessing.sentencepiece_export import to_huggingface

IMAGE_TOKEN = "<image>"


def _model_config(model) -> dict:
    """Return a model's arguments, those of its parts complete.

    Raises:
        ValueError: if its projection is of another family.
    """
    if not isinstance(model.modality_projection, ModalityProjection):
        raise ValueError(
            f"A {type(model).__name__} has a {type(model.modality_projection).__name__}, which "
            "neither nanoVLM nor SmolVLM has: export_llava and export_internvl write it."
        )
    language = model.language_decoder.arguments()
    vocab_size = language.pop("vocab_size")
    return {
        "vision_config": model.vision_encoder.arguments(),
        "language_config": language,
        "projection_config": model.modality_projection.arguments(),
        "vocab_size": vocab_size,
        "image_token_id": model.image_token_id,
        "bidirectional_images": model.bidirectional_images,
    }


def export_nanovlm(
    model,
    folder: str | os.PathLike,
    dtype: str | None = None,
    tokenizer: str | None = None,
    image_mean: float | Sequence[float] | None = None,
    image_std: float | Sequence[float] | None = None,
    **fields,
) -> None:
    """Write a model as the folder that huggingface/nanoVLM loads.

    nanoVLM resizes pictures by its own filters (bilinear, or bicubic to tiles).

    Args:
        model: A `NanoVLM` whose projection is one matrix.
        folder: Made where it does not exist.
        dtype: See `save_weights`.
        tokenizer: What nanoVLM is to load as tokenizer, a hub name or a folder; default: `folder`
            (its absolute path), into which the tokenizer of the model's processor is written.
        image_mean: As for `export_smolvlm`, but nanoVLM's pixels are in [0, 1].
        image_std: As for `export_smolvlm`.
        **fields: Further fields of its `VLMConfig`, or others in place of ours.

    Raises:
        ValueError: naming what the format lacks.
    """
    config = nanovlm_from_config(
        _model_config(model), model.tokens_per_image, tokenizer or os.path.abspath(folder)
    )
    own = None
    if model.processor is not None:
        config |= nanovlm_processor_fields(model)
    if tokenizer is None:
        if model.processor is None:
            raise ValueError("Say which tokenizer nanoVLM is to load: tokenizer='OWNER/NAME'.")
        own = to_huggingface(copy.deepcopy(model.processor.tokenizer))
    decoder = model.language_decoder
    metadata = {}
    if decoder.tie_embeddings:
        metadata = {"decoder.token_embedding.weight": "decoder.head.weight"}
    frequencies = rotary_frequencies(decoder.blocks[0].attention.head_dim, decoder.rope_theta)
    replaced = fold_normalisation(model, image_mean, image_std, 0.0, 1.0)
    with staged(folder) as place:
        write_model(
            model,
            place,
            "nanovlm",
            config,
            dtype,
            # nanoVLM reads no shards.
            {**fields, "max_shard_bytes": 2**62},
            replaced=replaced,
            added={"decoder.rotary_embd.inv_freq": frequencies},
            metadata=metadata,
        )
        if own is not None:
            write_tokenizer(own, place)
        usage = (
            "from models.vision_language_model import VisionLanguageModel\n\n"
            'model = VisionLanguageModel.from_pretrained("FOLDER")'
        )
        write_model_card(model, place / "README.md", library="nanovlm", usage=usage)


def export_smolvlm(
    model,
    folder: str | os.PathLike,
    dtype: str | None = None,
    kind: str = "smolvlm",
    image_mean: float | Sequence[float] | None = None,
    image_std: float | Sequence[float] | None = None,
    **options,
) -> None:
    """Write a model as the SmolVLM or Idefics3 folder of transformers.

    With the model's processor the folder holds all that transformers, and servers built on it,
    need to run it: tokenizer, image settings, chat template, generation settings and model card.
    A model that puts images before the text gets a token id for them, with a new row, the mean of
    the others, if the table has none to spare: it is never the likeliest, and generation_config
    suppresses it.

    Args:
        model: A `NanoVLM` whose projection is one matrix.
        folder: Made where it does not exist.
        dtype: See `save_weights`.
        kind: "smolvlm" or "idefics3".
        image_mean: What is subtracted from pixels in [0, 1] before this model sees them, one
            number or one per channel; default: as its processor does. SmolVLM subtracts 0.5 and
            divides by 0.5; what differs is folded into the patch embedding. nanoVLM's own
            checkpoints have 0.
        image_std: What they are divided by then. nanoVLM's own checkpoints have 1.
        **options: As for `export_decoder`.

    Raises:
        ValueError: naming what the format lacks.
    """
    processor, tokenizer = model.processor, None
    image_token_id = model.image_token_id
    if processor is not None:
        tokenizer = to_huggingface(copy.deepcopy(processor.tokenizer))
    if image_token_id is None:
        image_token_id = model.vocab_size
        if tokenizer is not None:
            image_token_id = tokenizer.add_special_tokens([IMAGE_TOKEN])[0]
    rows = max(model.vocab_size, image_token_id + 1)
    config = _model_config(model)
    config |= {"vocab_size": rows, "image_token_id": image_token_id}
    config = smolvlm_from_config(config, kind)
    replaced = fold_normalisation(model, image_mean, image_std, 0.5, 0.5)
    replaced |= grown_vocabulary(model, rows)
    with staged(folder) as place:
        write_model(model, place, "smolvlm", config, dtype, options, replaced=replaced)
        if processor is not None:
            write_smolvlm_files(model, place, kind, tokenizer, image_token_id)
