"""Questions and messages in, texts out."""

import io

import numpy as np
import pytest
from keras import ops
from PIL import Image
from tiny_chat import (
    CHARACTERS,
    assistant,
    letters,
    picture,
    png,
    user,
)
from tiny_models import (
    tiny_nanovlm,
)

from dl_techniques.datasets.vqa_dataset import VQADataProcessor

NEW = 12


def spelled(text):
    """Return a logits processor that makes every row say a text, then end."""
    ids = np.array([ord(c) for c in text] + [2], "int32")

    def processor(logits, chosen, i):
        token = ops.take(ids, ops.minimum(i, len(ids) - 1))
        return ops.where(ops.arange(CHARACTERS + 1) == token, 1e3, logits)

    return processor


def test_strings_give_strings(chat):
    one = chat.generate("what?", NEW)
    assert isinstance(one, str)
    assert chat.generate(["what?"], NEW) == [one]
    assert chat.generate([user("what?")], NEW) == one
    assert chat.generate([[user("what?")], "what?"], NEW) == [one, one]
    assert chat.generate(("what?", "what?"), NEW) == [one, one]
    ids = chat.processor.encode_prompt([user("what?")]).token_ids
    (row,) = chat.generate([ids], NEW)
    stop = np.flatnonzero(np.isin(row, chat.processor.stop_ids))
    assert chat.processor.decode(row[: stop[0] if len(stop) else NEW]).strip() == one
    text, logprobs = chat.generate("what?", NEW, return_logprobs=True)
    assert text == one and logprobs.shape == (1, NEW)
    system = [{"role": "system", "content": "be kind"}, user("a?"), assistant("b"), user("c?")]
    assert isinstance(chat.generate(system, NEW), str)


def test_an_image_may_come_from_anywhere(chat, tmp_path):
    array = picture(0, size=20)
    path = tmp_path / "a.png"
    Image.fromarray(array).save(path)
    read = io.BytesIO(png(array))
    read.read()
    sources = [path, str(path), png(array), Image.fromarray(array), array, read]
    conversations = [[user("what?", source)] for source in sources]
    pixels = chat.processor.preprocess_image(array)
    ids = chat.processor.encode_prompt(conversations[0]).token_ids
    arrays = {"text_tokens": np.array([ids]), "images": pixels[None]}
    options = {"logits_processors": [letters], "return_logprobs": True}
    _, expected = chat.generate(arrays, NEW, **options)
    texts, logprobs = chat.generate(conversations, NEW, **options)
    assert len(set(texts)) == 1
    np.testing.assert_allclose(logprobs, np.repeat(expected, 6, axis=0), atol=1e-5)
    content = [{"type": "image", "image": path}, {"type": "text", "text": "what?"}]
    assert chat.generate([{"role": "user", "content": content}], NEW, **options)[0] == texts[0]
    # It matters which image it is.
    _, other = chat.generate([user("what?", picture(9))], NEW, **options)
    assert np.abs(other - expected).max() > 1e-3


def test_conversations_of_any_images_are_answered_as_if_alone(chat):
    conversations = [
        [user("which?", picture(0), picture(1))],
        "none?",
        [user("one?", picture(2)), assistant("yes"), user("and now?")],
    ]
    options = {"logits_processors": [letters], "return_logprobs": True}
    together, logprobs = chat.generate(conversations, NEW, **options)
    for row, conversation in enumerate(conversations):
        alone, values = chat.generate(conversation, NEW, **options)
        assert alone == together[row]
        np.testing.assert_allclose(values[0], logprobs[row], atol=1e-5)


def test_conversations_of_any_images_before_the_text(models, chat):
    model = tiny_nanovlm(
        "prefix",
        vocab_size=CHARACTERS + 1,
        language_config=models["prefix"].language_config | {"max_positions": 60},
    )
    model.processor = VQADataProcessor(16, tokenizer=chat.processor.tokenizer)
    # Rows share the slots of the most images: 42 tokens and 2 * 4 slots, though of other rows.
    long, images = "x" * (42 - len("<question:  answer:")), [picture(0), picture(1)]
    conversations = [long, [user("hm?", *images)]]
    together, logprobs = model.generate(conversations, 10, return_logprobs=True)
    for row, conversation in enumerate(conversations):
        alone, values = model.generate(conversation, 10, return_logprobs=True)
        assert alone == together[row]
        np.testing.assert_allclose(values[0], logprobs[row], atol=1e-5)
    with pytest.raises(ValueError, match=r"50 prompt positions \+ max_new_tokens=11 .*=60"):
        model.generate(conversations, 11)


def test_stops_of_the_template_are_the_default(chat):
    assert chat.processor.stop_ids == [2]
    said = {"logits_processors": [spelled(" ab")], "max_new_tokens": NEW}
    assert chat.generate("hm?", **said) == "ab"
    ids = np.array([chat.processor.encode_prompt([user("hm?")]).token_ids])
    expected = [ord(" "), ord("a"), ord("b"), 2]
    assert chat.generate(ids, **said)[0].tolist() == expected + [0] * (NEW - 4)
    assert chat.generate(ids, stop_ids=[], **said)[0].tolist() == expected + [2] * (NEW - 4)


def test_stops_of_the_model_join_those_of_the_template(chat, monkeypatch):
    said = {"logits_processors": [spelled(" ab")], "max_new_tokens": NEW}
    monkeypatch.setattr(chat, "stop_ids", (ord("b"),))
    assert chat.generate("hm?", **said) == "a"
    monkeypatch.setattr(chat, "stop_ids", (ord("z"),))
    assert chat.generate("hm?", **said) == "ab"
