"""`preprocessor_config.json`: read from transformers' files, and read by transformers."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from dl_techniques.preprocessing.image_processors import (
    CenterCropImageProcessor,
    Idefics3ImageProcessor,
    InternVLImageProcessor,
    NanoVLMImageProcessor,
    NVLMImageProcessor,
)
from dl_techniques.preprocessing.images import ImageProcessor
from dl_techniques.preprocessing.preprocessor_config import (
    image_processor_from_preprocessor_config,
    preprocessor_config,
)

PICTURES = [
    Image.fromarray(np.random.default_rng(n).integers(0, 256, (height, width, 3), np.uint8))
    for n, (width, height) in enumerate([(64, 64), (99, 40), (23, 77), (1, 1), (900, 3)])
]
LONGEST = {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 24}}
SMOLVLM = {
    "do_convert_rgb": True,
    "do_image_splitting": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SmolVLMImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "max_image_size": {"longest_edge": 512},
    "processor_class": "SmolVLMProcessor",
    "resample": 1,
    "rescale_factor": 0.00392156862745098,
    "size": {"longest_edge": 2048},
    "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 512}},
}
# As the first CLIP was published, before transformers wrote the sizes as dicts.
OLD_CLIP = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}


def assert_same_pixels(ours, theirs):
    for picture in PICTURES:
        values = np.asarray(theirs(picture)["pixel_values"], np.float32)
        expected = np.moveaxis(values.reshape(-1, *values.shape[-3:]), 1, -1)
        got = ours.normalize(ours.tiles(picture).pixels)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6, err_msg=str(picture.size))


@pytest.mark.parametrize(
    ("theirs", "kind"),
    [
        (SiglipImageProcessorPil(size={"height": 16, "width": 16}), ImageProcessor),
        (SiglipImageProcessorPil(size={"height": 16, "width": 12}, resample=2), ImageProcessor),
        (SiglipImageProcessorPil(image_mean=[0, 0, 0], image_std=[1, 1, 1]), ImageProcessor),
        (
            CLIPImageProcessorPil(
                size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
            ),
            CenterCropImageProcessor,
        ),
        (Idefics3ImageProcessorPil(**LONGEST), Idefics3ImageProcessor),
        (SmolVLMImageProcessorPil(**LONGEST, resample=2), Idefics3ImageProcessor),
        (
            SmolVLMImageProcessorPil(**LONGEST, do_image_splitting=False),
            Idefics3ImageProcessor,
        ),
        (
            SmolVLMImageProcessorPil(**LONGEST, do_image_splitting=False, do_resize=False),
            Idefics3ImageProcessor,
        ),
        (
            GotOcr2ImageProcessorPil(
                size={"height": 16, "width": 16}, crop_to_patches=True, max_patches=6
            ),
            InternVLImageProcessor,
        ),
        (GotOcr2ImageProcessorPil(size={"height": 16, "width": 16}), InternVLImageProcessor),
    ],
)
def test_what_transformers_writes_is_read(theirs, kind, tmp_path):
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    ours = image_processor_from_preprocessor_config(config)
    assert type(ours) is kind
    assert_same_pixels(ours, theirs)
    # And back: what we write of it, transformers reads to the same pixels.
    again = type(theirs).from_dict(preprocessor_config(ours))
    assert_same_pixels(ours, again)


@pytest.mark.parametrize("suffix", ["", "Fast", "Pil"])
def test_published_files(suffix):
    kind = f"SmolVLMImageProcessor{suffix}"
    smolvlm = image_processor_from_preprocessor_config(SMOLVLM | {"image_processor_type": kind})
    assert vars(smolvlm) == vars(Idefics3ImageProcessor())
    clip = image_processor_from_preprocessor_config(OLD_CLIP)
    assert vars(clip) == vars(CenterCropImageProcessor())
    fast = {"crop_size": None, "data_format": "channels_first", "device": None}
    fast |= {"default_to_square": True, "do_center_crop": None, "input_data_format": None}
    size = {"height": 448, "width": 448}
    internvl = {
        "crop_to_patches": False,
        "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "GotOcr2ImageProcessorFast",
        "image_std": [0.229, 0.224, 0.225],
        "max_patches": 12,
        "min_patches": 1,
        "processor_class": "InternVLProcessor",
        "resample": 3,
        "size": size,
    }
    got = image_processor_from_preprocessor_config(fast | internvl)
    assert vars(got) == vars(InternVLImageProcessor(transparency="white"))
    del internvl["processor_class"]
    assert image_processor_from_preprocessor_config(internvl).max_tiles == 1


STRETCHES = [
    ImageProcessor(size, resample=resample)
    for size in (16, 17)
    for resample in ("nearest", "box", "bilinear", "bicubic", "lanczos")
]


@pytest.mark.parametrize("processor", STRETCHES, ids=lambda p: f"{p.resample}-{p.width}")
def test_a_stretch_can_be_written_for_smolvlm_and_idefics3(processor):
    for kind, theirs in (
        ("idefics3", Idefics3ImageProcessorPil),
        ("smolvlm", SmolVLMImageProcessorPil),
    ):
        config = preprocessor_config(processor, kind)
        assert config["do_resize"] is False and config["do_image_splitting"] is False
        theirs = theirs.from_dict(config)
        assert_same_pixels(processor, theirs)
        # Its first resize would spoil all pictures that are not square.
        with pytest.raises(AssertionError, match="Not equal"):
            assert_same_pixels(processor, type(theirs).from_dict(config | {"do_resize": True}))
        back = image_processor_from_preprocessor_config(config)
        assert back.max_tiles == 1
        assert_same_pixels(back, theirs)


def test_other_kinds_that_are_written():
    for processor, kind, theirs in (
        (Idefics3ImageProcessor(24, 96), "smolvlm", SmolVLMImageProcessorPil),
        (Idefics3ImageProcessor(24, 96), "idefics3", Idefics3ImageProcessorPil),
        (Idefics3ImageProcessor(24, 96, False), None, Idefics3ImageProcessorPil),
        (InternVLImageProcessor(24, 2, 5), None, GotOcr2ImageProcessorPil),
        (InternVLImageProcessor(24, max_num=1), None, GotOcr2ImageProcessorPil),
        (CenterCropImageProcessor(24, 0.1, 0.2, "lanczos"), None, CLIPImageProcessorPil),
        (ImageProcessor((24, 30), 0.1, 0.2), None, SiglipImageProcessorPil),
    ):
        config = preprocessor_config(processor, kind)
        assert json.loads(json.dumps(config)) == config
        assert_same_pixels(processor, theirs.from_dict(config))


def test_transformers_chooses_the_class_by_the_file(tmp_path):
    for kind, name in (("siglip", "Siglip"), ("smolvlm", "SmolVLM")):
        config = preprocessor_config(ImageProcessor(16), kind)
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
        theirs = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
        assert type(theirs).__name__ == f"{name}ImageProcessorPil"
        assert_same_pixels(ImageProcessor(16), theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_processor_type": "Siglip2ImageProcessor"}, "Siglip2ImageProcessor"),
        ({"image_processor_type": None}, "image_processor_type None"),
        ({"image_processor_type": ["x"]}, "image_processor_type"),
        ({"do_resize": False}, "do_resize"),
        ({"do_rescale": False}, "do_rescale"),
        ({"do_normalize": False}, "do_normalize"),
        ({"do_convert_rgb": False}, "do_convert_rgb"),
        ({"do_center_crop": True}, "do_center_crop"),
        ({"do_resize": "yes"}, "do_resize"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({"rescale_factor": 1}, "rescale_factor"),
        ({"resample": 5}, "resample"),
        ({"resample": "bicubic"}, "resample"),
        ({"resample": None}, "lacks 'resample'"),
        ({"size": None}, "lacks 'size'"),
        ({"size": {"height": 8, "width": 8}}, "size"),
        ({"size": {"longest_edge": "8"}}, "size"),
        ({"size": {"longest_edge": 8, "shortest_edge": 4}}, "size"),
        ({"size": {"longest_edge": 8192}}, "longest_edge"),
        ({"max_image_size": {"longest_edge": 0}}, "image_size"),
        ({"max_image_size": [512]}, "max_image_size"),
        ({"do_image_splitting": 1}, "do_image_splitting"),
        ({"image_mean": [0.5]}, "mean"),
        ({"image_std": [0.5, 0.5, 0]}, "std"),
        ({"crop_size": 8}, "crop_size"),
        ({"pad_size": {"height": 8, "width": 8}}, "pad_size"),
        ({"input_data_format": "channels_last"}, "input_data_format"),
        ({"brand_new_field": 0}, "brand_new_field"),
    ],
)
def test_unusual_fields_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        image_processor_from_preprocessor_config(SMOLVLM | change)


def test_other_unusual_files():
    for config in (None, [], "x"):
        with pytest.raises(ValueError, match="dict"):
            image_processor_from_preprocessor_config(config)
    with pytest.raises(ValueError, match="crop_size"):
        image_processor_from_preprocessor_config(OLD_CLIP | {"crop_size": 200})
    with pytest.raises(ValueError, match="do_center_crop"):
        image_processor_from_preprocessor_config(OLD_CLIP | {"do_center_crop": False})
    with pytest.raises(ValueError, match="size"):
        image_processor_from_preprocessor_config(OLD_CLIP | {"size": {"height": 9, "width": 9}})
    siglip = preprocessor_config(ImageProcessor(16))
    for size in ({"shortest_edge": 16}, {"height": 16}, "16", 1.5):
        with pytest.raises(ValueError, match="size"):
            image_processor_from_preprocessor_config(siglip | {"size": size})
    with pytest.raises(ValueError, match="max_patches"):
        got = preprocessor_config(InternVLImageProcessor(16))
        image_processor_from_preprocessor_config(got | {"max_patches": 2.5})


def test_what_cannot_be_written():
    for processor, kind, message in (
        (NanoVLMImageProcessor(), None, "NanoVLMImageProcessor"),
        (NVLMImageProcessor(), "internvl", "NVLMImageProcessor"),
        (ImageProcessor(16), "clip", "clip"),
        (CenterCropImageProcessor(16), "siglip", "siglip"),
        (ImageProcessor((16, 12)), "smolvlm", "square"),
        (InternVLImageProcessor(use_thumbnail=False), None, "thumbnail"),
    ):
        with pytest.raises(ValueError, match=message):
            preprocessor_config(processor, kind)
