"""Folders of runs that are not whole are refused with the reason."""

import pytest
from tiny_chat import chat_model
from tiny_models import tiny_nanovlm

from dl_techniques.training.run_folder import FINAL_MODEL, load_model


@pytest.fixture
def finished(tmp_path):
    """The folder of a finished run."""
    model = tiny_nanovlm()
    model.save(tmp_path / FINAL_MODEL)
    (tmp_path / "config.json").write_text('{"model": "custom", "data": "shapes"}')
    return tmp_path


def test_a_run_that_has_not_ended_says_so(finished):
    (finished / FINAL_MODEL).unlink()
    with pytest.raises(ValueError, match="a run that has not ended, as nanovlm_final.keras is"):
        load_model(str(finished))


def test_damaged_models_are_told_by_their_file(finished):
    path = finished / FINAL_MODEL
    whole = path.read_bytes()
    middle = len(whole) // 2
    for damaged, reason in (
        (whole[:-100], "not a whole zip archive"),
        (b"", "not a whole zip archive"),
        (whole.replace(b"config.json", b"Config.json"), "no item named 'config.json'"),
        (whole[:middle] + bytes(99) + whole[middle + 99 :], "Bad CRC-32"),
    ):
        path.write_bytes(damaged)
        for source in (finished, path):
            with pytest.raises(ValueError, match=f"{FINAL_MODEL} cannot be read: .*{reason}"):
                load_model(str(source))
    with pytest.raises(ValueError, match="There is no file .*other.keras"):
        load_model(str(finished / "other.keras"))


def test_a_run_takes_no_other_tokenizer(finished):
    for options in ({"tokenizer": "elsewhere"}, {"dtype": "bfloat16"}):
        with pytest.raises(
            ValueError, match=f"is loaded as it is: it takes no {next(iter(options))}"
        ):
            load_model(str(finished), **options)


def test_a_file_takes_what_lies_beside_it_and_a_tokenizer(finished, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    processor = chat_model().processor
    processor.tokenizer.save(other)
    path = str(finished / FINAL_MODEL)
    with pytest.raises(ValueError, match="preprocessor_config.json beside it"):
        load_model(path, tokenizer=other)
    assert load_model(path).processor is None
    processor.save(finished)
    (finished / "tokenizer_config.json").unlink()
    loaded = load_model(path, tokenizer=other)
    assert loaded.processor.tokenizer.vocab_size == processor.tokenizer.vocab_size
    assert load_model(path, weights_only=True).processor is None
    with pytest.raises(ValueError, match="is loaded as it is: it takes no dtype, revision"):
        load_model(path, dtype="bfloat16", revision="main")


def test_without_the_processor_of_a_run(finished):
    with pytest.raises(ValueError, match="preprocessor_config.json"):
        load_model(str(finished))
    chat_model().processor.save(finished)
    assert load_model(str(finished)).processor is not None
    assert load_model(str(finished), weights_only=True).processor is None
    with pytest.raises(ValueError, match="weights_only leaves out the tokenizer"):
        load_model(str(finished), tokenizer="x", weights_only=True)
