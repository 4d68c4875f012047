"""Data: readers, generated pictures, and data sets for training.

`vqa_dataset` (which imports keras) is imported by its own name.
"""

from dl_techniques.datasets.readers import read_cauldron, read_jsonl, read_samples
from dl_techniques.datasets.samples import group_by_image, split_by_image
from dl_techniques.datasets.shapes import generate_shapes

__all__ = [
    "generate_shapes",
    "group_by_image",
    "read_cauldron",
    "read_jsonl",
    "read_samples",
    "split_by_image",
]
