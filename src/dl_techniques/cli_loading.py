"""What the commands load."""


def load_source(source: str, **options):
    """Return the model, or the part of one, of a training run or of any other source.

    Args:
        source: Folder of a run, preset folder, file or hf://owner/name.
        **options: See `load_any`; a run has all of its own.
    """
    from dl_techniques.training.run_folder import load_model

    return load_model(source, **options)


def load_answering(source: str, tokenizer: str | None = None):
    """Return a model that answers questions.

    Raises:
        ValueError: if the source is a part of a model, or has no tokenizer.
    """
    from dl_techniques.models.vision_language_model import VisionLanguageModel

    model = load_source(source, tokenizer=tokenizer)
    if not isinstance(model, VisionLanguageModel):
        raise ValueError(f"{source} is a {type(model).__name__}, which answers no questions.")
    if model.processor is None:
        raise ValueError(f"{source} has no tokenizer: name one with the option tokenizer.")
    return model
