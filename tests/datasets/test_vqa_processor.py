import json

import numpy as np
import pytest
from PIL import Image

from dl_techniques.datasets.vqa_dataset import VQADataProcessor, load_cauldron_sample
from dl_techniques.preprocessing.chat_template import CHATML, ChatTemplate
from dl_techniques.preprocessing.images import ImageProcessor
from dl_techniques.preprocessing.tokenizer import CharacterTokenizer, SentencePieceTokenizer

RED = Image.new("RGB", (6, 4), (255, 0, 0))


def codes(text):
    return [ord(c) for c in text]


def test_preprocess_text_by_hand():
    processor = VQADataProcessor(image_size=8, max_text_length=40)
    encoded = processor.preprocess_text("Who?", "Me")
    prompt, answer = [1, *codes("question: who? answer:")], [*codes(" me"), 2]
    padding = [0] * (40 - len(prompt) - len(answer))
    assert encoded["input_ids"].tolist() == prompt + answer + padding
    masked = [-100] * len(prompt)
    assert encoded["labels"].tolist() == masked + answer + [-100] * len(padding)
    assert encoded["input_ids"].dtype == encoded["labels"].dtype == np.int32
    asked = processor.preprocess_text("Who?")
    assert set(asked) == {"input_ids"}
    assert asked["input_ids"].tolist() == prompt + [0] * (40 - len(prompt))


def test_preprocess_text_fits_exactly_or_raises():
    length = 1 + len("Question: Who? Answer: Me") + 1
    VQADataProcessor(8, length).preprocess_text("Who?", "Me")
    with pytest.raises(ValueError, match=f"has {length} tokens, more than max_text_length="):
        VQADataProcessor(8, length - 1).preprocess_text("Who?", "Me")
    with pytest.raises(ValueError, match="empty answer"):
        VQADataProcessor(8).preprocess_text("Who?", " ")


def test_preprocess_text_with_another_tokenizer():
    other = CharacterTokenizer(200, pad_id=7, bos_id=8, eos_id=9)
    encoded = VQADataProcessor(8, 30).preprocess_text("a", "b", tokenizer=other)
    assert encoded["input_ids"][0] == 8 and encoded["input_ids"][-1] == 7
    assert encoded["labels"].max() == ord("b") and 9 in encoded["labels"]


def test_guide_defaults():
    processor = VQADataProcessor()
    assert processor.image_size == 224 and processor.max_text_length == 512
    assert processor.vocab_size == 32000
    ids = processor.pad_token_id, processor.bos_token_id, processor.eos_token_id
    assert ids == (0, 1, 2)
    image = processor.preprocess_image(RED)
    assert image.shape == (224, 224, 3) and image.dtype == np.float32
    assert image[0, 0].tolist() == [1.0, -1.0, -1.0]


def test_process_places_images_and_masks_them():
    processor = VQADataProcessor(4, 60, image_token_id=5, tokens_per_image=2)
    sample = {
        "images": [RED, RED],
        "messages": [
            {"role": "user", "content": "a <|image|> b <|image|>"},
            {"role": "assistant", "content": "c"},
        ],
    }
    encoded = processor.process(sample)
    ids = [1, *codes("question: a "), 5, 5, *codes(" b "), 5, 5, *codes(" answer:"), 32, 99, 2]
    assert encoded["text_tokens"].tolist() == ids
    assert encoded["labels"].tolist() == [-100] * (len(ids) - 3) + [32, 99, 2]
    assert encoded["images"].shape == (2, 4, 4, 3) and encoded["images"][1, 0, 0, 0] == 1.0
    prompt = processor.process({**sample, "messages": sample["messages"][:1]})
    assert prompt["text_tokens"].tolist() == ids[:-3] and "labels" not in prompt
    guide = processor.process({"image_path": RED, "question": "a", "answer": "c"})
    assert guide["text_tokens"].tolist() == [1, 5, 5, *codes("question: a answer: c"), 2]
    text = processor.process({"question": "a", "answer": "c"})
    assert text["images"].shape == (0, 4, 4, 3)
    with pytest.raises(ValueError, match="max_text_length=60"):
        processor.process({"question": "a" * 60, "answer": "c"})
    with pytest.raises(ValueError, match="beside and inside"):
        inside = [{"role": "user", "content": "x", "image": RED}]
        processor.process({"images": [RED], "messages": inside})
    with pytest.raises(ValueError, match="'image_path', 'question' and 'answer'"):
        processor.process({"question": "a"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_text_length": 1}, "max_text_length"),
        ({"max_bad_share": 2.0}, "max_bad_share"),
        ({"template": "alpaca"}, "chatml"),
        ({"template": "chatml"}, "im_start"),
        ({"image_token_id": 5}, "tokens_per_image"),
        ({"image_token_id": 32000, "tokens_per_image": 4}, "outside the vocabulary"),
        ({"tokenizer": CharacterTokenizer(500), "vocab_size": 400}, "vocab_size=400 contradicts"),
        ({"tokenizer": CharacterTokenizer(500), "eos_token_id": 4}, "eos_token_id=4 contradicts"),
    ],
)
def test_contradictory_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        VQADataProcessor(**arguments)


def test_save_and_load_carry_everything(tmp_path):
    texts = ["What colour is the star? red", "How many circles are there? 3"] * 20
    marks = ["<|im_start|>", "<|im_end|>", "<|image|>"]
    tokenizer = SentencePieceTokenizer.train(texts, 320, special_tokens=marks)
    processor = VQADataProcessor(
        max_text_length=77,
        tokenizer=tokenizer,
        template=CHATML,
        image_token_id=tokenizer.token_to_id("<|image|>"),
        tokens_per_image=3,
        image_processor=ImageProcessor((4, 6), mean=0.4, resample="box"),
        max_bad_share=0.5,
    )
    processor.save(tmp_path / "a" / "b")
    loaded = VQADataProcessor.load(tmp_path / "a" / "b")
    assert loaded.get_config() == processor.get_config() and loaded.template is CHATML
    assert loaded.image_size == (4, 6)
    sample = {"image_path": RED, "question": "What colour is the star?", "answer": "red"}
    one, other = processor.process(sample), loaded.process(sample)
    for key in one:
        assert np.array_equal(one[key], other[key])
    json.loads((tmp_path / "a" / "b" / "preprocessor_config.json").read_text())
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        VQADataProcessor.load(tmp_path)
    with pytest.raises(ValueError, match="CharacterTokenizer"):
        VQADataProcessor.from_config(processor.get_config(), CharacterTokenizer())


def test_from_config_leaves_its_config_alone():
    processor = VQADataProcessor(8, 50)
    config = processor.get_config()
    for _ in range(2):
        VQADataProcessor.from_config(config, processor.tokenizer)
    assert config == processor.get_config()


@pytest.mark.parametrize(
    "damage",
    [
        lambda config: config.pop("tokenizer_class"),
        lambda config: config.update(colour="red"),
        lambda config: config.update(template=3),
    ],
    ids=["lacks a field", "unknown field", "no template"],
)
def test_damaged_files_are_one_error_that_names_them(tmp_path, damage):
    processor = VQADataProcessor(8, 50)
    processor.save(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"preprocessor_config\.json' cannot be read"):
        VQADataProcessor.load(tmp_path)
    config = processor.get_config()
    damage(config)
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"preprocessor_config\.json' is not that of a processor"):
        VQADataProcessor.load(tmp_path)


def test_a_tokenizer_takes_the_place_of_the_folders(tmp_path):
    processor = VQADataProcessor(8, 50, vocab_size=300)
    processor.save(tmp_path)
    other = CharacterTokenizer(400)
    assert VQADataProcessor.load(tmp_path, tokenizer=other).tokenizer is other


def test_own_template_survives_saving(tmp_path):
    template = ChatTemplate("mine", ("", ""), ("U:", ""), ("A:", ""), starts_with_bos=True)
    processor = VQADataProcessor(8, 50, vocab_size=300, template=template)
    processor.save(tmp_path)
    loaded = VQADataProcessor.load(tmp_path)
    assert loaded.template == template and loaded.vocab_size == 300
    assert loaded.preprocess_text("x", "y")["input_ids"][:6].tolist() == [1, *codes("u:xa:")]


def test_shipped_sample_is_usable():
    rows = load_cauldron_sample()
    assert len(rows) >= 5 and len({row["image_path"] for row in rows}) >= 3
    assert all({"image_path", "question", "answer"} <= row.keys() for row in rows)
    dataset = VQADataProcessor(32, 128).create_dataset(rows, 4, shuffle=False)
    assert len(dataset.report) == 0 and len(dataset.rows) == len(rows)
    house = next(row for row in rows if "roof" in row["question"])
    image = VQADataProcessor(32).preprocess_image(house["image_path"])
    assert house["answer"] == "red" and image[11, 16, 0] > 0.2 > image[11, 16, 1]
