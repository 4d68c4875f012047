"""What is learned of every template and every schema, to be read by eye.

What is learned stands between « and »; for the other signs see `golden_text`.
"""

import re

import numpy as np
import pytest
from golden_rows import GOLDEN_ROWS
from golden_text import (
    PLACEHOLDER,
    TOKENS_PER_IMAGE,
    documents,
    learned_runs,
    marked,
    packed,
    processor_of,
    spelled,
    tokenizer_of_bytes,
)

from dl_techniques.datasets.packed_rows import collate
from dl_techniques.datasets.rows import IGNORE_INDEX, BadSampleError, messages_with_images
from dl_techniques.datasets.schemas import SCHEMAS, detect_schema
from dl_techniques.preprocessing.chat_template import TEMPLATES, encode_conversation
from dl_techniques.preprocessing.image_processors import Idefics3ImageProcessor

pytestmark = pytest.mark.no_backend

# What begins and what ends every answer.
AROUND_ANSWERS = {
    "chatml": ("", "<|im_end|>"),
    "smollm2": ("", "<|im_end|>"),
    "qwen2": ("", "<|im_end|>"),
    "nvlm": ("", "<|im_end|>"),
    "question_answer": (" ", "<|endoftext|>"),
    "smolvlm": (" ", "<end_of_utterance>"),
    "idefics3": (" ", "<end_of_utterance>"),
    "vicuna": (" ", "<|endoftext|>"),
    "ghostvis": ("", "<|assistant_end|>"),
}

CHATML_CONVERSATION = (
    "<|im_start|>system\nBe brief.<|im_end|>\n"
    "<|im_start|>user\n[image]What is it?<|im_end|>\n"
    "<|im_start|>assistant\n«A cat.<|im_end|>»\n"
    "<|im_start|>user\nWhere?<|im_end|>\n"
    "<|im_start|>assistant\n«In a café.<|im_end|>»\n"
)
# `CONVERSATION` in every template.
GOLDEN_CONVERSATIONS = {
    "chatml": CHATML_CONVERSATION,
    "smollm2": CHATML_CONVERSATION,
    "qwen2": CHATML_CONVERSATION,
    "nvlm": CHATML_CONVERSATION,
    "question_answer": (
        "<|begin|>Be brief.\n"
        "[image]Question: What is it? Answer:« A cat.<|endoftext|>»"
        "Question: Where? Answer:« In a café.<|endoftext|>»"
    ),
    "smolvlm": (
        "<|im_start|>System: Be brief.<end_of_utterance>\n"
        "User:[image]What is it?<end_of_utterance>\n"
        "Assistant:« A cat.<end_of_utterance>»\n"
        "User: Where?<end_of_utterance>\n"
        "Assistant:« In a café.<end_of_utterance>»\n"
    ),
    "idefics3": (
        "<|begin_of_text|>System: Be brief.<end_of_utterance>\n"
        "User:[image]What is it?<end_of_utterance>\n"
        "Assistant:« A cat.<end_of_utterance>»\n"
        "User: Where?<end_of_utterance>\n"
        "Assistant:« In a café.<end_of_utterance>»\n"
    ),
    "vicuna": (
        "<|begin|>Be brief. USER: [image]What is it? ASSISTANT:« A cat.<|endoftext|>»"
        "USER: Where? ASSISTANT:« In a café.<|endoftext|>»"
    ),
    "ghostvis": (
        "<|bos|><|user_start|>Be brief.<|user_end|>"
        "<|user_start|>[image]What is it?<|user_end|>"
        "<|assistant_start|>«A cat.<|assistant_end|>»"
        "<|user_start|>Where?<|user_end|>"
        "<|assistant_start|>«In a café.<|assistant_end|>»"
    ),
}
# `GREETING`, which has neither a system turn nor an image, in every template.
GOLDEN_GREETINGS = {
    "chatml": ("<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n«Hello.<|im_end|>»\n"),
    "smollm2": (
        "<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n«Hello.<|im_end|>»\n"
    ),
    "qwen2": (
        "<|im_start|>system\n"
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n«Hello.<|im_end|>»\n"
    ),
    "nvlm": (
        "<|im_start|>system\n"
        "Follow the user's instruction and answer questions.<|im_end|>\n"
        "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n«Hello.<|im_end|>»\n"
    ),
    "question_answer": "<|begin|>Question: Hi! Answer:« Hello.<|endoftext|>»",
    "smolvlm": ("<|im_start|>User: Hi!<end_of_utterance>\nAssistant:« Hello.<end_of_utterance>»\n"),
    "idefics3": (
        "<|begin_of_text|>User: Hi!<end_of_utterance>\nAssistant:« Hello.<end_of_utterance>»\n"
    ),
    "vicuna": (
        "<|begin|>A chat between a curious user and an artificial intelligence assistant. The "
        "assistant gives helpful, detailed, and polite answers to the user's questions. "
        "USER: Hi! ASSISTANT:« Hello.<|endoftext|>»"
    ),
    "ghostvis": (
        "<|bos|><|user_start|>Hi!<|user_end|><|assistant_start|>«Hello.<|assistant_end|>»"
    ),
}


def conversation(*turns, system=None):
    messages = [] if system is None else [{"role": "system", "content": system}]
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return messages


PIXELS = np.zeros((4, 8, 3), np.uint8)
CONVERSATION = {
    "images": [PIXELS],
    "messages": conversation(
        ("What is it?", "A cat."), ("Where?", "In a café."), system="Be brief."
    ),
}
GREETING = {"images": [], "messages": conversation(("Hi!", "Hello."))}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tokenizer_of_bytes(tmp_path_factory.mktemp("bytes"))


def golden_ids():
    return [f"{schema}-{number}" for number, (schema, _, _) in enumerate(GOLDEN_ROWS)]


golden_rows = pytest.mark.parametrize(("schema", "row", "texts"), GOLDEN_ROWS, ids=golden_ids())
every_template = pytest.mark.parametrize("template", TEMPLATES)


def test_every_template_and_every_schema_is_shown():
    assert set(GOLDEN_CONVERSATIONS) == set(TEMPLATES)
    assert set(GOLDEN_GREETINGS) == set(TEMPLATES)
    assert set(AROUND_ANSWERS) == set(TEMPLATES)
    assert {schema for schema, _, _ in GOLDEN_ROWS} == set(SCHEMAS)


@every_template
@pytest.mark.parametrize(
    ("sample", "texts"),
    [(CONVERSATION, GOLDEN_CONVERSATIONS), (GREETING, GOLDEN_GREETINGS)],
    ids=["conversation", "greeting"],
)
def test_templates(tokenizer, template, sample, texts):
    processor = processor_of(tokenizer, template)
    ((ids, labels),) = documents([sample], processor)
    assert marked(ids, labels, tokenizer) == texts[template]
    whole = processor.process(sample)
    assert marked(whole["text_tokens"], whole["labels"], tokenizer) == texts[template]
    inputs, batch = processor.create_dataset([sample], 1, bucket=16)[0]
    real = inputs["attention_mask"][0]
    assert marked(inputs["text_tokens"][0][real], batch[0][real], tokenizer) == texts[template]
    assert (batch[0][~real] == IGNORE_INDEX).all()


@every_template
def test_images_that_the_model_prepends_take_no_place(tokenizer, template):
    messages = messages_with_images(CONVERSATION)
    encoded = encode_conversation(messages, tokenizer, TEMPLATES[template])
    ids = np.array(encoded.token_ids)
    labels = np.where(encoded.label_mask, ids, IGNORE_INDEX)
    expected = GOLDEN_CONVERSATIONS[template].replace("[image]", "")
    assert marked(ids, labels, tokenizer) == expected


def test_marks_between_tiles_are_not_learned(tokenizer):
    images = Idefics3ImageProcessor(4, 8)
    processor = processor_of(tokenizer, "smolvlm", image_processor=images)
    sample = {"image_path": PIXELS, "question": "What?", "answer": "A cat."}
    ((ids, labels),) = documents([sample], processor)
    assert marked(ids, labels, tokenizer) == (
        "<|im_start|>User:"
        "<fake_token_around_image><row_1_col_1>[image]"
        "<fake_token_around_image><row_1_col_2>[image]\n\n"
        "<fake_token_around_image><global-img>[image]<fake_token_around_image>"
        "What?<end_of_utterance>\n"
        "Assistant:« A cat.<end_of_utterance>»\n"
    )


@golden_rows
def test_schemas(tokenizer, schema, row, texts):
    found = documents(SCHEMAS[schema](row), processor_of(tokenizer, "chatml"))
    assert [marked(ids, labels, tokenizer) for ids, labels in found] == texts


@golden_rows
def test_the_rows_have_the_columns_of_their_schemas(schema, row, texts):
    # ShareGPT4V has LLaVA's columns.
    own = "csv" if schema == "csv" else "jsonl"
    told = "jsonl" if "messages" in row and "images" in row else schema
    assert detect_schema(row, own=own) == {"sharegpt4v": "llava"}.get(told, told)


@every_template
@golden_rows
def test_answers_with_their_end_tokens_are_all_that_is_learned(
    tokenizer, template, schema, row, texts
):
    found = documents(SCHEMAS[schema](row), processor_of(tokenizer, template))
    assert len(found) == len(texts)
    before, end = AROUND_ANSWERS[template]
    for (ids, labels), text in zip(found, texts, strict=True):
        if schema == "plain_text":
            expected = [text[2:-1]]
        else:
            answers = re.findall(r"«(.*?)<\|im_end\|>»", text, re.DOTALL)
            expected = [before + answer + end for answer in answers]
        runs = [labels[run] for run, learned in learned_runs(labels) if learned]
        assert [spelled(run, tokenizer) for run in runs] == expected
        placeholders = ids == tokenizer.token_to_id(PLACEHOLDER)
        assert placeholders.sum() == TOKENS_PER_IMAGE * text.count("[image]")
        assert (labels[placeholders] == IGNORE_INDEX).all()


def samples_of(*schemas):
    rows = {schema: row for schema, row, _ in reversed(GOLDEN_ROWS)}
    return [sample for schema in schemas for sample in SCHEMAS[schema](rows[schema])]


def test_a_packed_row(tokenizer):
    samples = samples_of("vqav2", "plain_text", "lnqa")
    processor = processor_of(tokenizer, "chatml")
    alone = sum(len(ids) for ids, _ in documents(samples, processor))
    (row,) = packed(samples, processor, alone + 2)
    inputs, labels = collate([row], processor.pad_token_id)
    assert marked(inputs["text_tokens"][0], labels[0], tokenizer) == (
        "<|im_start|>user\n[image]What is this?<|im_end|>\n"
        "<|im_start|>assistant\n«net<|im_end|>»\n"
        "T«he \\<|im_end|> of\nan era.<|endoftext|>»"
        "<|im_start|>user\n[image]Who?<|im_end|>\n"
        "<|im_start|>assistant\n«A man.<|im_end|>»\n"
        "<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\n«For fun.<|im_end|>»\n"
        "<|pad|><|pad|>"
    )


@every_template
@pytest.mark.parametrize(
    "schemas",
    [("llava", "plain_text", "lnqa"), ("plain_text", "smoltalk", "plain_text")],
    ids=["pictures", "texts"],
)
def test_documents_of_a_packed_row_teach_what_they_teach_alone(tokenizer, template, schemas):
    samples = samples_of(*schemas)
    processor = processor_of(tokenizer, template, length=2048)
    (row,) = packed(samples, processor, 2048)
    inputs, labels = collate([row], processor.pad_token_id)
    tokens, segments = inputs["text_tokens"][0], inputs["segment_ids"][0]
    found = [
        marked(tokens[segments == number], labels[0][segments == number], tokenizer)
        for number in range(1, segments.max() + 1)
    ]
    alone = [marked(ids, taught, tokenizer) for ids, taught in documents(samples, processor)]
    assert found == alone and len(alone) == 3
    assert (labels[0][segments == 0] == IGNORE_INDEX).all()


# template -> the parts of `CONVERSATION` where it does not fit
SPLIT_CONVERSATIONS = {
    "chatml": [
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n[image]What is it?<|im_end|>\n"
        "<|im_start|>assistant\n«A cat.<|im_end|>»\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n[image]Where?<|im_end|>\n"
        "<|im_start|>assistant\n«In a café.<|im_end|>»\n",
    ],
    "question_answer": [
        "<|begin|>Be brief.\n[image]Question: What is it? Answer:« A cat.<|endoftext|>»",
        "<|begin|>Be brief.\n[image]Question: Where? Answer:« In a café.<|endoftext|>»",
    ],
    "idefics3": [
        "<|begin_of_text|>System: Be brief.<end_of_utterance>\n"
        "User:[image]What is it?<end_of_utterance>\n"
        "Assistant:« A cat.<end_of_utterance>»\n",
        "<|begin_of_text|>System: Be brief.<end_of_utterance>\n"
        "User:[image]Where?<end_of_utterance>\n"
        "Assistant:« In a café.<end_of_utterance>»\n",
    ],
}
SPLIT_CONVERSATIONS["smolvlm"] = [
    part.replace("<|begin_of_text|>", "<|im_start|>") for part in SPLIT_CONVERSATIONS["idefics3"]
]


@pytest.mark.parametrize("template", SPLIT_CONVERSATIONS)
def test_a_conversation_that_does_not_fit_is_cut_between_its_turns(tokenizer, template):
    def texts(length):
        found = documents([CONVERSATION], processor_of(tokenizer, template, length))
        return [marked(ids, labels, tokenizer) for ids, labels in found]

    ((ids, _),) = documents([CONVERSATION], processor_of(tokenizer, template))
    assert texts(len(ids)) == [GOLDEN_CONVERSATIONS[template]]
    assert texts(len(ids) - 1) == SPLIT_CONVERSATIONS[template]
    parts = documents([CONVERSATION], processor_of(tokenizer, template, len(ids) - 1))
    longest = max(len(part) for part, _ in parts)
    assert texts(longest) == SPLIT_CONVERSATIONS[template]
    with pytest.raises(BadSampleError, match=f"A turn has {longest} tokens"):
        texts(longest - 1)


def test_a_default_system_turn_and_the_image_stand_before_each_part(tokenizer):
    sample = {**CONVERSATION, "messages": CONVERSATION["messages"][1:]}
    ((whole, _),) = documents([sample], processor_of(tokenizer, "nvlm"))
    found = documents([sample], processor_of(tokenizer, "nvlm", len(whole) - 1))
    assert [marked(ids, labels, tokenizer) for ids, labels in found] == [
        "<|im_start|>system\nFollow the user's instruction and answer questions.<|im_end|>\n"
        "<|im_start|>user\n[image]What is it?<|im_end|>\n"
        "<|im_start|>assistant\n«A cat.<|im_end|>»\n",
        "<|im_start|>system\nFollow the user's instruction and answer questions.<|im_end|>\n"
        "<|im_start|>user\n[image]Where?<|im_end|>\n"
        "<|im_start|>assistant\n«In a café.<|im_end|>»\n",
    ]


def test_a_text_that_does_not_fit_is_cut_anywhere(tokenizer):
    processor = processor_of(tokenizer, "chatml")
    rows = packed([{"text": "The era of steam."}], processor, 8)
    arrays = [row.arrays(processor.pad_token_id) for row in rows]
    assert [marked(row["text_tokens"], row["labels"], tokenizer) for row in arrays] == [
        "T«he era »",
        "o«f steam»",
        ".«<|endoftext|>»<|pad|><|pad|><|pad|><|pad|><|pad|><|pad|>",
    ]
