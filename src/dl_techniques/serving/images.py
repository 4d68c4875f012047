"""Images that come with requests: checked before anything is decoded."""

import base64
import binascii
import io
import re
import warnings

from PIL import Image

from dl_techniques.preprocessing.images import load_image
from dl_techniques.serving.failures import RefusedError

# Pillow's decoders of other formats are many, and some run other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_DATA_URI = re.compile(r"data:image/[a-z.+-]+;base64,", re.IGNORECASE)


def image_of_data_uri(url: str, max_pixels: int) -> bytes:
    """Return the encoded image in a data URI.

    Raises:
        RefusedError: for any other URL (nothing is ever fetched), or what is no image.
    """
    start = _DATA_URI.match(url)
    if start is None:
        raise RefusedError(
            400,
            "An image must come as a data URI, data:image/png;base64,...: no URL is fetched and no "
            "file is read.",
            "invalid_image_url",
        )
    try:
        data = base64.b64decode(url[start.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(400, "An image's base64 text is broken.", "invalid_image") from error
    return checked_image(data, max_pixels)


def checked_image(data: bytes, max_pixels: int) -> bytes:
    """Return an encoded image that is whole and not too large.

    Raises:
        RefusedError: for anything else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RefusedError(400, _too_large(max_pixels), "image_too_large") from error
    except Exception as error:
        names = ", ".join(FORMATS)
        raise RefusedError(400, f"An image must be one of {names}.", "invalid_image") from error
    if width * height > max_pixels:
        raise RefusedError(400, _too_large(max_pixels), "image_too_large")
    try:
        load_image(data, max_pixels)
    except Exception as error:
        message = "An image is truncated or corrupt."
        raise RefusedError(400, message, "invalid_image") from error
    return data


def _too_large(max_pixels):
    return f"An image has more than {max_pixels} pixels: scale it down."
