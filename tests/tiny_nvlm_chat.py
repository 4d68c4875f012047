"""A tiny NVLM that reads and writes characters; wide pictures have two tiles, and a thumbnail."""

from tiny_chat import CHARACTERS
from tiny_nvlm import LANGUAGE, TOKENS, tiny_nvlm

from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.preprocessing.image_processors import NVLMImageProcessor
from dl_techniques.preprocessing.tokenizer import CharacterTokenizer


def nvlm_chat_model(architecture: str, compressor: bool = False):
    """Return a model with its processor, whose tags of tiles are tokens.

    Args:
        architecture: See `NVLM`.
        compressor: Whether a compressor makes the tokens.
    """
    tokenizer = CharacterTokenizer(CHARACTERS)
    images = NVLMImageProcessor(image_size=16, max_num=2)
    tokenizer.add_special_tokens(["<|image|>", *images.tags])
    special, arguments = tokenizer.special_tokens, {}
    language = LANGUAGE | {"max_positions": 256}
    if architecture != "decoder":
        language["cross_attention_every"] = 2
        arguments["tile_tag_ids"] = [special[tag] for tag in images.tags]
    placed = architecture != "cross_attention"
    if placed:
        arguments["image_token_id"] = special["<|image|>"]
    if compressor:
        queries = {"input_dim": 16, "num_queries": TOKENS, "num_heads": 2}
        arguments |= {"compressor_config": queries, "scale_factor": None}
    model = tiny_nvlm(
        architecture, vocab_size=tokenizer.vocab_size, language_config=language, **arguments
    )
    model.processor = VQADataProcessor(
        16,
        tokenizer=tokenizer,
        image_token_id=special["<|image|>"] if placed else None,
        tokens_per_image=TOKENS if placed else 0,
        image_processor=images,
        placeholder_tiles="last" if architecture == "hybrid" else "all",
    )
    return model
