"""Pictures of how a model reads an image and answers a question about it."""

from pathlib import Path
from typing import Any

import numpy as np
from keras import ops
from PIL import Image, ImageDraw, ImageFont

from dl_techniques.generation.prompts import prompt_batch, read_prompt
from dl_techniques.generation.text_stream import TextStream
from dl_techniques.visualization.answer_attention import answer_attention, heated, scaled
from dl_techniques.visualization.image_attention import query_maps

CELL, MARGIN, LINE = 192, 12, 18
INK = (30, 30, 30)
MOST_TOKENS, MOST_QUERIES, MOST_TILES = 12, 16, 8
WORD_CELL = (76, 22)


def look(
    model, image: Any, prompt: str, folder: str | Path, max_new_tokens: int = 32
) -> tuple[str, list[Path]]:
    """Answer a question about an image, and write PNGs of what the model does on the way.

    - `tiles.png`: the image as the model sees it.
    - `attention.png`: where the answer's tokens look (see `image_attention`), together and one by
      one; the share of their whole attention that falls on the image stands beside them. Colours
      go from nothing to the largest value of a row.
    - `words.png`: the nearest word, by cosine, of each image token among the token embeddings.
    - `queries.png`, with a resampler: what its first queries read of the first tile.

    Args:
        model: A `VisionLanguageModel` with a `processor`.
        image: Anything that `load_image` reads.
        prompt: The question.
        folder: Where the PNGs go; it is made.
        max_new_tokens: The longest answer.

    Returns:
        The answer, and the files.

    Raises:
        ValueError: for an image that cannot be read or a prompt that is too long.
    """
    processor, engine = model.processor, model.generation_engine()
    conversation = [{"role": "user", "content": prompt, "image": image}]
    read = read_prompt(processor, conversation)
    batch = prompt_batch(engine, model, [read], model.vision_cache)
    options = {"stop_ids": processor.stop_ids, "pad_token_id": processor.pad_token_id}
    new = model.generate(batch, max_new_tokens, **options)[0].tolist()
    ends = [i for i, token in enumerate(new) if token in processor.stop_ids]
    new = new[: ends[0]] if ends else new
    tiles, attention = answer_attention(model, read, new)
    tokens = [repr(processor.decode([token])) for token in new]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "tiles": _tiles_sheet(tiles),
        "attention": _attention_sheet(tiles, attention, tokens),
        "words": _words_sheet(_nearest_words(model, batch["vision_embeds"][0])),
    }
    pixels = processor.image_processor.normalize(tiles)
    maps = query_maps(model, ops.convert_to_tensor(pixels))
    if maps is not None:
        pictures["queries"] = _queries_sheet(tiles[0], maps[0])
    paths = []
    for name, picture in pictures.items():
        paths.append(folder / f"{name}.png")
        picture.save(paths[-1])
    text = TextStream(processor.decode, ())
    text.push(np.array(new, "int32"))
    text.finish()
    return text.text, paths


def _nearest_words(model, embeds) -> list[list[str]]:
    """Return the word of each token of each tile, float[I, T, D]."""
    table = ops.cast(model.language_decoder.token_embedding.embeddings, "float32")
    table, embeds = (ops.normalize(ops.cast(x, "float32"), axis=-1) for x in (table, embeds))
    ids = ops.convert_to_numpy(ops.argmax(ops.matmul(embeds, ops.transpose(table)), axis=-1))
    decode = model.processor.tokenizer.decode
    return [[decode([int(token)]).strip() for token in tile] for tile in ids]


def _tiles_sheet(tiles) -> Image.Image:
    columns = min(len(tiles), 4)
    sheet, draw = _sheet(-(-len(tiles) // columns), columns, LINE)
    for i, tile in enumerate(tiles):
        left, top = _corner(i // columns, i % columns, LINE)
        sheet.paste(scaled(tile, CELL), (left, top))
        text = f"tile {i + 1} of {len(tiles)}, {tile.shape[1]} x {tile.shape[0]}"
        draw.text((left, top + CELL + 2), text, font=_font(), fill=INK)
    return sheet


def _attention_sheet(tiles, attention, tokens) -> Image.Image:
    """Draw a row of tiles for all tokens together, and one for each of the first tokens."""
    rows = [("the whole answer", attention.mean(axis=0))]
    rows += list(zip(tokens, attention, strict=False))[:MOST_TOKENS]
    shown = tiles[:MOST_TILES]
    sheet, draw = _sheet(len(rows), len(shown), LINE)
    for row, (name, shares) in enumerate(rows):
        for column, (tile, heat) in enumerate(zip(shown, shares, strict=False)):
            place = _corner(row, column, LINE)
            sheet.paste(heated(tile, heat / max(shares.max(), 1e-9), CELL), place)
        left, top = _corner(row, 0, LINE)
        text = f"{name}: {shares.sum():.0%} on the image"
        draw.text((left, top + CELL + 2), text, font=_font(), fill=INK)
    return sheet


def _queries_sheet(tile, maps) -> Image.Image:
    maps = maps[:MOST_QUERIES]
    columns = min(len(maps), 4)
    sheet, draw = _sheet(-(-len(maps) // columns), columns, LINE)
    for i, heat in enumerate(maps):
        left, top = _corner(i // columns, i % columns, LINE)
        sheet.paste(heated(tile, heat / max(heat.max(), 1e-9), CELL), (left, top))
        draw.text((left, top + CELL + 2), f"query {i}", font=_font(), fill=INK)
    return sheet


def _words_sheet(words) -> Image.Image:
    """Draw the words of each tile where its tokens lie, or eight in a line."""
    width, height = WORD_CELL
    side = round(len(words[0]) ** 0.5)
    columns = side if side * side == len(words[0]) else min(8, len(words[0]))
    lines = -(-len(words[0]) // columns)
    size = (columns * width + 2 * MARGIN, len(words) * (lines * height + LINE + MARGIN) + MARGIN)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for tile, found in enumerate(words):
        top = MARGIN + tile * (lines * height + LINE + MARGIN)
        draw.text((MARGIN, top), f"tile {tile + 1}", font=_font(), fill=INK)
        for i, word in enumerate(found):
            left, y = MARGIN + i % columns * width, top + LINE + i // columns * height
            draw.rectangle((left, y, left + width, y + height), outline="lightgrey")
            draw.text((left + 4, y + 3), word[:9], font=_font(), fill=INK)
    return sheet


def _sheet(rows, columns, text) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    size = (MARGIN + columns * (CELL + MARGIN), MARGIN + rows * (CELL + text + MARGIN))
    # Room for the words below a single narrow column.
    sheet = Image.new("RGB", (max(size[0], 320), size[1]), "white")
    return sheet, ImageDraw.Draw(sheet)


def _corner(row, column, text) -> tuple[int, int]:
    return MARGIN + column * (CELL + MARGIN), MARGIN + row * (CELL + text + MARGIN)


def _font():
    return ImageFont.load_default(size=13)
