"""`preprocessor_config.json` of Hugging Face: read into our image processors and written from them.

Reading is strict: a field that would change the pixels in a way that ours cannot follow is an
error, never ignored.
"""

import math
from typing import Any

from dl_techniques.preprocessing.image_processors import (
    CenterCropImageProcessor,
    Idefics3ImageProcessor,
    InternVLImageProcessor,
)
from dl_techniques.preprocessing.images import RESAMPLING, BaseImageProcessor, ImageProcessor

_TYPES = {
    "siglip": "SiglipImageProcessor",
    "clip": "CLIPImageProcessor",
    "idefics3": "Idefics3ImageProcessor",
    "smolvlm": "SmolVLMImageProcessor",
    "internvl": "GotOcr2ImageProcessor",
}
_KINDS = {name: kind for kind, name in _TYPES.items()} | {"CLIPFeatureExtractor": "clip"}
# Fields that do not change the tiles of an RGB image.
_WITHOUT_EFFECT = {
    "image_processor_type",
    "image_seq_length",
    "feature_extractor_type",
    "processor_class",
    "_valid_processor_keys",
    "data_format",
    "default_to_square",
    "device",
    "do_pad",
    "disable_grouping",
    "return_tensors",
    "return_row_col_info",
    "video_sampling",
}


class _Fields:
    """The fields of a config, each taken once; None counts as absent."""

    def __init__(self, config: dict[str, Any]):
        self._left = {name: value for name, value in config.items() if value is not None}

    def take(self, name: str, default: Any = None) -> Any:
        value = self._left.pop(name, default)
        if value is None:
            raise ValueError(f"preprocessor_config.json lacks '{name}'.")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise _unusual(name, value, "true or false")
        return value

    def require(self, name: str, expected: bool) -> None:
        """Takes a flag that must have this value; transformers has it by default."""
        if self.flag(name, expected) != expected:
            raise _unusual(name, not expected, str(expected).lower())

    def number(self, name: str, default: int | None = None) -> int:
        value = self.take(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise _unusual(name, value, "an int")
        return value

    def side(self, name: str, key: str) -> int:
        """Takes a length that is written as an int or as {key: int}."""
        value = self.take(name)
        value = value.get(key) if _has_only(value, {key}) else value
        if not isinstance(value, int) or isinstance(value, bool):
            raise _unusual(name, value, f"a dict with '{key}'")
        return value

    def height_and_width(self, name: str) -> tuple[int, int]:
        """Takes a size that is written as an int or as {"height": int, "width": int}."""
        value = self.take(name)
        if isinstance(value, int):
            return value, value
        if not _has_only(value, {"height", "width"}):
            raise _unusual(name, value, "a dict with 'height' and 'width'")
        return value["height"], value["width"]

    def finish(self) -> None:
        """Raises a ValueError if a field is left that was not looked at."""
        left = sorted(set(self._left) - _WITHOUT_EFFECT)
        if left:
            name = left[0]
            raise _unusual(name, self._left[name], "no such field in this type of config")


def image_processor_from_preprocessor_config(config: dict[str, Any]) -> BaseImageProcessor:
    """Builds the image processor that `preprocessor_config.json` describes.

    transformers' own treatment of transparency is not in the file; see the classes' `transparency`
    (here: laid over white, as transformers does with PIL images).

    Args:
        config: the file's content, of a SigLIP, CLIP, Idefics3, SmolVLM or InternVL (GotOcr2) image
            processor, also with "Fast" or "Pil" behind the type's name.

    Raises:
        ValueError: a type or a field that is unknown or that ours cannot follow; it is named.
    """
    if not isinstance(config, dict):
        raise ValueError(f"preprocessor_config.json must hold a dict, got {config!r}.")
    name = config.get("image_processor_type") or config.get("feature_extractor_type")
    kind = _KINDS.get(str(name).removesuffix("Fast").removesuffix("Pil"))
    if kind is None:
        raise ValueError(
            f"image_processor_type {name!r} is unknown; expected one of {sorted(_KINDS)}."
        )
    fields = _Fields(config)
    arguments = _common_arguments(fields)
    processor = _READERS[kind](fields, arguments)
    fields.finish()
    return processor


def preprocessor_config(
    image_processor: BaseImageProcessor, kind: str | None = None
) -> dict[str, Any]:
    """Returns the content of `preprocessor_config.json` that gives transformers the same pixels.

    A plain square stretch can also be written as "idefics3" or "smolvlm": without splitting and
    without the first resize, those processors stretch once to `max_image_size`, whatever the shape
    of the image.

    Args:
        image_processor: any but those of nanoVLM's tiles and NVLM, which transformers lacks.
        kind: "siglip", "clip", "idefics3", "smolvlm" or "internvl"; default: the kind of the
            processor ("siglip" for the plain stretch).

    Raises:
        ValueError: transformers' processor of that kind cannot give the same pixels.
    """
    kinds = _WRITTEN_AS.get(image_processor.kind, ())
    kind = kind or (kinds[0] if kinds else None)
    if kind not in kinds:
        raise ValueError(
            f"transformers has no image processor of kind {kind!r} that gives the pixels of a "
            f"{type(image_processor).__name__}; it can be written as {list(kinds)}."
        )
    config = {
        "image_processor_type": _TYPES[kind],
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": int(RESAMPLING[image_processor.resample]),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(image_processor.mean),
        "image_std": list(image_processor.std),
    }
    return config | _WRITERS[kind](image_processor)


def _common_arguments(fields: _Fields) -> dict[str, Any]:
    fields.require("do_convert_rgb", True)
    fields.require("do_rescale", True)
    factor = fields.take("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise _unusual("rescale_factor", factor, "1 / 255")
    fields.require("do_normalize", True)
    names = {int(number): name for name, number in RESAMPLING.items()}
    resample = fields.number("resample")
    if resample not in names:
        raise _unusual("resample", resample, f"one of Pillow's numbers {names}")
    return {
        "mean": fields.take("image_mean"),
        "std": fields.take("image_std"),
        "resample": names[resample],
        "transparency": "white",
    }


def _read_siglip(fields: _Fields, arguments: dict) -> ImageProcessor:
    fields.require("do_resize", True)
    fields.require("do_center_crop", False)
    return ImageProcessor(fields.height_and_width("size"), **arguments)


def _read_clip(fields: _Fields, arguments: dict) -> CenterCropImageProcessor:
    fields.require("do_resize", True)
    fields.require("do_center_crop", True)
    side = fields.side("size", "shortest_edge")
    crop = fields.height_and_width("crop_size")
    if crop != (side, side):
        raise _unusual("crop_size", crop, f"the square of size.shortest_edge, {side}")
    return CenterCropImageProcessor(side, **arguments)


def _read_idefics3(fields: _Fields, arguments: dict) -> Idefics3ImageProcessor:
    fields.require("do_center_crop", False)
    longest_edge = fields.side("size", "longest_edge")
    side = fields.side("max_image_size", "longest_edge")
    split = fields.flag("do_image_splitting", True)
    if split:
        fields.require("do_resize", True)
    elif not fields.flag("do_resize", True):
        longest_edge = None
    return Idefics3ImageProcessor(side, longest_edge, split, **arguments)


def _read_internvl(fields: _Fields, arguments: dict) -> InternVLImageProcessor:
    fields.require("do_resize", True)
    fields.require("do_center_crop", False)
    size = fields.height_and_width("size")
    numbers = fields.number("min_patches", 1), fields.number("max_patches", 12)
    crop = fields.flag("crop_to_patches", False)
    # InternVL's processor cuts tiles whatever the file of its image processor says.
    if not crop and fields.take("processor_class", "") != "InternVLProcessor":
        numbers = 1, 1
    return InternVLImageProcessor(size, *numbers, **arguments)


def _write_siglip(processor: ImageProcessor) -> dict[str, Any]:
    return {"size": {"height": processor.height, "width": processor.width}}


def _write_clip(processor: CenterCropImageProcessor) -> dict[str, Any]:
    side = processor.width
    return {
        "size": {"shortest_edge": side},
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
    }


def _write_idefics3(processor: ImageProcessor | Idefics3ImageProcessor) -> dict[str, Any]:
    if processor.height != processor.width:
        raise ValueError(
            "Idefics3 and SmolVLM take square images only, got image_size="
            f"{processor.image_size}. Write this processor as 'siglip'."
        )
    plain = isinstance(processor, ImageProcessor)
    side = processor.width
    longest_edge = None if plain else processor.longest_edge
    return {
        "do_resize": longest_edge is not None,
        # Other readers of the file look at this size even where it is unused.
        "size": {"longest_edge": longest_edge or side},
        "max_image_size": {"longest_edge": side},
        "do_image_splitting": not plain and processor.do_image_splitting,
        "do_pad": True,
    }


def _write_internvl(processor: InternVLImageProcessor) -> dict[str, Any]:
    if not processor.use_thumbnail:
        raise ValueError("transformers' InternVL always adds the thumbnail; use_thumbnail is off.")
    return {
        "processor_class": "InternVLProcessor",
        "size": {"height": processor.height, "width": processor.width},
        "crop_to_patches": processor.max_num > 1,
        "min_patches": processor.min_num,
        "max_patches": processor.max_num,
    }


_READERS = {
    "siglip": _read_siglip,
    "clip": _read_clip,
    "idefics3": _read_idefics3,
    "smolvlm": _read_idefics3,
    "internvl": _read_internvl,
}
_WRITERS = {
    "siglip": _write_siglip,
    "clip": _write_clip,
    "idefics3": _write_idefics3,
    "smolvlm": _write_idefics3,
    "internvl": _write_internvl,
}
_WRITTEN_AS = {
    ImageProcessor.kind: ("siglip", "idefics3", "smolvlm"),
    CenterCropImageProcessor.kind: ("clip",),
    Idefics3ImageProcessor.kind: ("idefics3", "smolvlm"),
    InternVLImageProcessor.kind: ("internvl",),
}


def _has_only(value: Any, keys: set[str]) -> bool:
    return isinstance(value, dict) and {k for k, v in value.items() if v is not None} == keys


def _unusual(name: str, value: Any, expected: str) -> ValueError:
    return ValueError(
        f"preprocessor_config.json has {name}={value!r}, which ours cannot follow; expected "
        f"{expected}."
    )
