"""Where the sources of a mixture are: in a folder, or on the Hugging Face hub."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dl_techniques.datasets.hub_rows import PREFIX
from dl_techniques.datasets.mixture_recipes import check_recipe
from dl_techniques.datasets.sources import Source, StreamingSource, open_source

SUFFIXES = (".parquet", ".tar", ".jsonl", ".json", ".csv", ".tsv", ".txt")
Images = Mapping[str, str | Path]


@dataclass(frozen=True)
class HubSource:
    """A data set on the hub.

    Attributes:
        name: "owner/name".
        config: its configuration.
        data_files: the file of it.
        images: which pictures its rows name by file, if it does not hold them itself.
    """

    name: str
    config: str | None = None
    data_files: str | None = None
    images: str = ""

    def __str__(self) -> str:
        part = self.config or self.data_files
        return f"{PREFIX}{self.name}" + (f" ({part})" if part else "")


HUB_SOURCES: dict[str, HubSource] = {
    "a-okvqa": HubSource("HuggingFaceM4/A-OKVQA"),
    "chartqa": HubSource("HuggingFaceM4/ChartQA"),
    "coco_captions": HubSource("HuggingFaceM4/COCO", config="2014_captions"),
    "docvqa": HubSource("HuggingFaceM4/DocumentVQA"),
    "llava_instruct_150k": HubSource(
        "liuhaotian/LLaVA-Instruct-150K",
        data_files="llava_instruct_150k.json",
        images="COCO's train2017",
    ),
    "lnqa": HubSource("vikhyatk/lnqa"),
    "okvqa": HubSource("HuggingFaceM4/OK-VQA"),
    "sharegpt4v": HubSource(
        "Lin-Chen/ShareGPT4V", config="ShareGPT4V", images="coco/train2017 and others"
    ),
    "smoltalk": HubSource("HuggingFaceTB/smoltalk", config="all"),
    # ST-VQA alone is there without answers, or with columns of its own.
    "stvqa": HubSource("HuggingFaceM4/the_cauldron", config="st_vqa"),
    "textvqa": HubSource("textvqa/textvqa"),
    "vqav2": HubSource("HuggingFaceM4/VQAv2"),
}


def open_recipe(
    name: str,
    folder: str | Path | None = None,
    streaming: bool = False,
    *,
    split: str = "train",
    images: Images | None = None,
) -> dict[str, Source | StreamingSource]:
    """Opens every source of a named mixture: `Mixture(MIXTURES[name])` draws from them.

    Args:
        name: a key of `MIXTURES`.
        folder: holds one folder or file per source, named as the source, in any layout that
            `open_source` knows. Default: the sources come from the hub; see `HUB_SOURCES`.
        streaming: read the hub's data sets while they are used, instead of downloading them.
        split: of every source.
        images: source -> folder or zip archive of the images that its rows name.

    Raises:
        ValueError: an unknown name, sources that are not found (all are named), or rows that name
            images without a place for them; and see `open_source`.
        ConnectionError: the hub cannot be reached.
    """
    names, images = check_recipe(name), images or {}
    if folder is not None:
        if streaming:
            raise ValueError("streaming belongs to the hub: leave it out, or leave out the folder.")
        return open_folder(folder, names, split=split, images=images)
    _check_images(images, names)
    unknown = [source for source in names if source not in HUB_SOURCES]
    if unknown:
        raise ValueError(
            f"No place on the hub is known for {unknown}: download the mixture's sources and give "
            "their folder."
        )
    lacking = [s for s in names if HUB_SOURCES[s].images and s not in images]
    if lacking:
        example = f"images={{{lacking[0]!r}: FOLDER}}"
        needed = "; ".join(f"{source}: {HUB_SOURCES[source].images}" for source in lacking)
        raise ValueError(
            f"The hub has no pictures for {lacking}, whose rows name them by file ({needed}): "
            f"download these and give {example}."
        )
    return {s: _open_on_hub(HUB_SOURCES[s], split, streaming, images.get(s)) for s in names}


def _open_on_hub(
    source: HubSource, split: str, streaming: bool, images: str | Path | None
) -> Source | StreamingSource:
    return open_source(
        PREFIX + source.name,
        split=split,
        images=images,
        streaming=streaming,
        config=source.config,
        data_files=source.data_files,
    )


def open_folder(
    folder: str | Path, names: Iterable[str], *, split: str = "train", images: Images | None = None
) -> dict[str, Source]:
    """Opens the sources of a mixture in a folder.

    Args:
        folder: holds one folder or file per source; see `open_recipe`.
        names: the sources.
        split: of every source.
        images: source -> folder or zip archive of the images that its rows name.

    Raises:
        ValueError: sources that are not found (all are named); and see `open_source`.
    """
    folder, names, images = Path(folder), list(names), images or {}
    _check_images(images, names)
    if not folder.is_dir():
        raise ValueError(
            f"'{folder}' is no folder; expected one with a folder for each of {names}."
        )
    places = {name: _places(folder, name) for name in names}
    missing = [name for name, found in places.items() if not found]
    if missing:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
        raise ValueError(
            f"'{folder}' lacks the sources {missing}: expected a folder of that name for each, or "
            f"a file that ends in one of {list(SUFFIXES)}; found {there}."
        )
    several = {name: [path.name for path in found] for name, found in places.items() if found[1:]}
    if several:
        raise ValueError(f"'{folder}' has several files for one source: {several}. Keep one each.")
    return {
        name: open_source(found[0], split=split, images=images.get(name))
        for name, found in places.items()
    }


def _places(folder: Path, name: str) -> list[Path]:
    if (folder / name).exists():
        return [folder / name]
    return [
        folder / f"{name}{suffix}" for suffix in SUFFIXES if (folder / f"{name}{suffix}").is_file()
    ]


def _check_images(images: Images, names: Iterable[str]):
    unknown = sorted(set(images) - set(names))
    if unknown:
        raise ValueError(f"images names {unknown}; the mixture's sources are {sorted(names)}.")


def recipe_text(name: str) -> str:
    """Returns a recipe's sources, their shares and where they come from, as lines.

    Raises:
        ValueError: an unknown name.
    """
    shares = check_recipe(name)
    width = max(map(len, shares))
    lines = [f"{name}: shares of the answer tokens"]
    for source, share in shares.items():
        place = HUB_SOURCES.get(source)
        where = "no place on the hub is known: give a folder" if place is None else str(place)
        if place is not None and place.images:
            where += f", pictures from elsewhere: {place.images}"
        lines.append(f"  {source:{width}} {share:>7.1%}  {where}")
    return "\n".join(lines)
