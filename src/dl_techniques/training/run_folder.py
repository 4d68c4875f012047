"""The folder that a finished run leaves, and the model in it."""

from pathlib import Path

from dl_techniques.checkpoints.converting import KERAS_SUFFIX, load_any, refuse_options
from dl_techniques.checkpoints.json_files import read_json
from dl_techniques.checkpoints.keras_file import read_keras_file
from dl_techniques.checkpoints.processors import tokenizer_of
from dl_techniques.datasets.vqa_dataset import CONFIG_FILE as PROCESSOR_FILE
from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.models.families import MODEL_CONFIGS
from dl_techniques.models.nano_vlm import NanoVLM
from dl_techniques.models.vision_language_model import VisionLanguageModel

FINAL_MODEL, CONFIG_FILE = "nanovlm_final.keras", "config.json"


def is_run(name: str | Path) -> bool:
    """Tell whether a name is the folder of a finished run."""
    return (Path(name) / FINAL_MODEL).is_file()


def has_weights(config: dict) -> bool:
    """Tell whether a run starts from a model with weights and a processor of its own.

    Args:
        config: The run's settings.
    """
    name = config["model"]
    if name == "backbones" or is_run(name):
        return True
    return name != "custom" and name not in MODEL_CONFIGS and "/" in name


def load_checkpoint(
    folder: str | Path, dtype: str | None = None
) -> tuple[VisionLanguageModel, VQADataProcessor]:
    """Return the trained model and its processor, which is the model's too.

    Args:
        folder: The run's.
        dtype: The policy of the model; default: that of the run.

    Raises:
        ValueError: if the folder lacks a file.
    """
    path = Path(folder) / FINAL_MODEL
    if not is_run(folder):
        raise ValueError(f"{folder} is no checkpoint folder: {path} does not exist.")
    model = read_keras_file(path, dtype)
    model.processor = VQADataProcessor.load(folder)
    model.training_data, model.results = _origin(Path(folder))
    return model, model.processor


def load_model(source: str, tokenizer=None, weights_only: bool = False, **options):
    """Return the model, or the part of one, of a training run or of any other source.

    Args:
        source: The folder of a run; a `.keras` file, whose processor may lie beside it or one
            folder above (as a run leaves its stages); or what `converting.load_any` takes.
        tokenizer: See `from_preset`; a run has its own.
        weights_only: Leave processors alone: the model gets none.
        **options: Of `load_any`; runs and `.keras` files take none.

    Raises:
        ValueError: there is no such file, a source is given what it does not take, and as
            `load_checkpoint` and `load_any`.
    """
    if weights_only and tokenizer is not None:
        raise ValueError("weights_only leaves out the tokenizer: name none.")
    if is_run(source):
        refuse_options(source, options | {"tokenizer": tokenizer})
        model = load_checkpoint(source)[0]
        if weights_only:
            model.processor = None
        return model
    path = Path(source)
    settings = path / CONFIG_FILE
    if settings.is_file() and {"model", "data"} <= read_json(settings).keys():
        raise ValueError(
            f"{source} is a run that has not ended, as {FINAL_MODEL} is missing; the command that "
            "began it goes on with it."
        )
    if path.suffix != KERAS_SUFFIX:
        options |= {"processor": None} if weights_only else {"tokenizer": tokenizer}
        return load_any(source, NanoVLM, **options)
    model = load_any(source, **options)
    places = (path.parent, path.parent.parent)
    place = next((place for place in places if (place / PROCESSOR_FILE).is_file()), None)
    if place is None and tokenizer is not None:
        raise ValueError(
            f"{source} has no {PROCESSOR_FILE} beside it: a tokenizer alone tells nothing of its "
            "images and turns."
        )
    if place is not None and not weights_only:
        own = None if tokenizer is None else tokenizer_of(tokenizer)
        model.processor = VQADataProcessor.load(place, own)
    return model


def _origin(folder: Path):
    """Return what the run's model learned from, in one sentence, and its scores."""
    settings, results = folder / CONFIG_FILE, folder / "results.json"
    if not (settings.is_file() and results.is_file()):
        return None, None
    config = read_json(settings)
    data = Path(config["data"]).name
    unit = "epochs" if config["steps"] is None else "steps"
    duration = f"{config[unit]} {unit}"
    beginning = "from scratch" if not has_weights(config) else f"from {config['model']}"
    text = f"The data set {data!r}, {duration}, seed {config['seed']}, {beginning}."
    return text, read_json(results)
