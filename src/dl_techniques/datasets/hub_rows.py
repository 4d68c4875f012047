"""Rows of data sets on the Hugging Face hub, through the `datasets` library."""

from typing import Any

from dl_techniques.datasets.image_place import ImagePlace

PREFIX = "hf://"


def load_hub(name: str, split: str, streaming: bool, **options: Any) -> Any:
    """Loads a split of a data set, its images not decoded.

    Args:
        name: "hf://owner/name".
        split: the split.
        streaming: read the rows over the network while they are used, instead of downloading.
        **options: `config` (the name of a configuration), `revision`, `data_files`.

    Returns:
        A `datasets.Dataset`, or a `datasets.IterableDataset`.

    Raises:
        ImportError: `datasets` is not installed.
        ConnectionError: the hub cannot be reached.
        ValueError: there is no such data set, configuration or split.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "Data sets on the hub need 'datasets': pip install 'dl_techniques[data]'."
        ) from error
    options["name"] = options.pop("config", None)
    given = {key: value for key, value in options.items() if value is not None}
    try:
        dataset = datasets.load_dataset(
            name.removeprefix(PREFIX), split=split, streaming=streaming, **given
        )
    except ConnectionError as error:
        raise ConnectionError(
            f"'{name}' cannot be loaded: the hub does not answer ({error}). Check the network, or "
            "download the data set elsewhere and open its folder."
        ) from error
    except (ValueError, FileNotFoundError, RuntimeError) as error:  # Also: it needs a script.
        raise ValueError(
            f"'{name}' (split '{split}', {given}) cannot be loaded: {error}"
        ) from error
    return _undecoded(dataset, streaming)


def _undecoded(dataset: Any, streaming: bool) -> Any:
    # Encoded images are small, and whoever decodes them reports the broken ones.
    if dataset.features is None:
        return dataset
    if streaming:
        return dataset.decode(False)
    features = dataset.features.copy()
    for name, feature in features.items():
        features[name] = _undecoded_feature(feature)
    return dataset if features == dataset.features else dataset.cast(features)


def _undecoded_feature(feature: Any) -> Any:
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(mode=feature.mode, decode=False)
    if isinstance(feature, datasets.List):
        return datasets.List(_undecoded_feature(feature.feature), length=feature.length)
    return feature


class HubRows:
    """Rows of a `datasets.Dataset`, by number.

    Args:
        dataset: see `load_hub`.
        name: "hf://owner/name".
    """

    block_ends = None  # The library keeps rows where each is read alone.

    def __init__(self, dataset: Any, name: str):
        self._dataset, self._name = dataset, name
        self.columns = list(dataset.column_names)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._dataset[index]

    def column(self, name: str) -> list[Any]:
        """Returns a field of all rows."""
        return self._dataset[name][:]

    def where(self, index: int) -> str:
        """Returns where a row is, for error messages."""
        return f"{self._name}, row {index + 1}"

    def default_id(self, index: int) -> str:
        """Returns the id of a row that has none."""
        return f"{self._name.rpartition('/')[2]}-{index + 1}"

    def images(self, index: int) -> ImagePlace:
        """Returns where named images are: in the working folder, unless the caller knows better."""
        return ImagePlace("")
