"""Where the tokens of an answer look, and the picture of it."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from dl_techniques.generation.prompts import Prompt
from dl_techniques.visualization.image_attention import image_attention

HEAT = np.array([220, 30, 30])


def answer_attention(
    model, prompt: Prompt, answer_ids: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of a prompt as the model sees them, and where an answer's tokens look.

    Args:
        model: A `VisionLanguageModel` with a `processor`.
        prompt: A conversation with at least one image, up to the answer; see `read_prompt`.
        answer_ids: The answer.

    Returns:
        uint8[I, H, W, 3], the tiles of all images; float32[T, I, rows, columns], the shares of
        attention (see `image_attention`) with which each of the answer's T tokens was chosen. An
        empty answer has the row of what would be its first.

    Raises:
        ValueError: for an image that cannot be read, or a prompt without one.
    """
    reader = model.processor.image_processor
    if not prompt.images:
        raise ValueError("There is no image to look at.")
    tiles = np.concatenate([reader.tiles(image).pixels for image in prompt.images])
    ids = np.array([[*prompt.ids, *answer_ids]], "int32")
    shares = image_attention(model, {"text_tokens": ids, "images": reader.normalize(tiles)[None]})
    # A token is chosen where the one before it stands.
    first = len(prompt.ids) - 1
    shares = shares[first : first + max(1, len(answer_ids))]
    return np.clip(np.rint(tiles), 0, 255).astype("uint8"), shares


def heated(tile: np.ndarray, heat: np.ndarray, side: int) -> Image.Image:
    """Lay values in [0, 1] on [rows, columns] over uint8[H, W, 3], which is greyed a little.

    Args:
        tile: The picture.
        heat: The values.
        side: The longer side of the result, in pixels.
    """
    picture = scaled(tile, side)
    mask = Image.fromarray(np.rint(255 * np.clip(heat, 0, 1)).astype("uint8"))
    mask = np.asarray(mask.resize(picture.size, Image.Resampling.NEAREST))[..., None] / 255
    pixels = np.asarray(picture, "float32")
    faded = 0.5 * pixels + 0.5 * pixels.mean(axis=-1, keepdims=True)
    return Image.fromarray((faded * (1 - 0.7 * mask) + 0.7 * mask * HEAT).astype("uint8"))


def scaled(pixels: np.ndarray, side: int) -> Image.Image:
    """Return uint8[H, W, 3] with a longer side of `side` pixels; small ones keep hard edges."""
    picture = Image.fromarray(pixels)
    scale = side / max(picture.size)
    size = tuple(max(1, round(length * scale)) for length in picture.size)
    smooth = Image.Resampling.BICUBIC
    return picture.resize(size, Image.Resampling.NEAREST if scale > 2 else smooth)
