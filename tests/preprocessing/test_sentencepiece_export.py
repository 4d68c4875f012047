"""SentencePiece models as tokenizer.json: ids, special tokens and conversations stay the same."""

import copy
import pickle
import random
import re

import pytest
import sentencepiece
from sentences import from_data, handmade
from test_text_parity import same_as_auto_tokenizer
from tokenizers import models
from transformers import AutoTokenizer

from dl_techniques.preprocessing.chat_template import (
    CHATML,
    QUESTION_ANSWER,
    encode_conversation,
)
from dl_techniques.preprocessing.chat_template_jinja import chat_template_jinja
from dl_techniques.preprocessing.sentencepiece_export import to_huggingface
from dl_techniques.preprocessing.tokenizer import (
    CharacterTokenizer,
    SentencePieceTokenizer,
    load_tokenizer,
)

pytestmark = pytest.mark.no_backend

MARKS = ["<|im_start|>", "<|im_end|>", "<|image|>"]
DUMMY_PREFIX = b"\x1a\x02\x18\x01"  # normalizer_spec.add_dummy_prefix = true
TRAPS = ["<", "0x41>", "<0x", ">", "<s>", "</s>", "<unk>", "<|image|>", " ", "  ", "\n", "\u2581"]
TRAPS += ["\ue000", "\ue001", "a", "aa", "the ", "é", "漢", "1", "22", "\t"]


def fuzz(count):
    choose = random.Random(0)
    made = ["".join(choose.choices(TRAPS, k=choose.randint(1, 14))) for _ in range(count)]
    return made + ["".join(choose.choices(" a\n", k=choose.randint(1, 40))) for _ in range(count)]


CORPUS = handmade() + ["the red circle is left of the blue square <b> </b> a<b"] * 9


@pytest.fixture(scope="module", params=["bpe", "unigram", "unigram without <"])
def trained(request):
    kind, *_ = request.param.split()
    corpus = [t.replace("<", "") for t in CORPUS] if kind != request.param else CORPUS
    return SentencePieceTokenizer.train(corpus, 900, kind, special_tokens=MARKS)


def same_ids(first, second, texts, unigram=False):
    assert first.special_tokens == second.special_tokens
    for name in ("vocab_size", "pad_id", "bos_id", "eos_id"):
        assert getattr(first, name) == getattr(second, name), name
    for text in texts:
        for options in ({}, {"allow_special": True}, {"continues": True}):
            ids, others = first.encode(text, **options), second.encode(text, **options)
            if ids != others:
                # Unigram models weigh the same pieces in another order the same, but for rounding.
                assert unigram and sorted(ids) == sorted(others), (text, options)
                assert re.search(r"(.{1,5})\1{7}", text, re.DOTALL), (text, options)
            assert second.decode(ids) == first.decode(ids), (text, options)


@pytest.mark.parametrize("prefix", [b"", DUMMY_PREFIX], ids=["plain", "dummy prefix"])
def test_trained_models(trained, tmp_path, prefix):
    tokenizer = SentencePieceTokenizer(trained.model + prefix)
    tokenizer.add_special_tokens(["<row_1_col_1>", "</x>"])
    exported = to_huggingface(tokenizer)
    texts = handmade() + fuzz(300)
    same_ids(tokenizer, exported, texts, unigram=type(exported._backend.model) is models.Unigram)
    for text in texts:
        assert not set(exported.encode(text)) & set(exported.special_tokens.values())
    exported.save(tmp_path)
    same_ids(exported, load_tokenizer(tmp_path), texts[::7])
    same_ids(exported, pickle.loads(pickle.dumps(exported)), texts[::7])
    same_as_auto_tokenizer(exported, tmp_path, texts)


@pytest.mark.data
@pytest.mark.parametrize("kind", ["bpe", "unigram", "mistral"])
def test_real_texts(data_folder, tmp_path, kind):
    texts = handmade() + from_data(data_folder)
    if kind == "mistral":
        tokenizer = load_tokenizer(data_folder / "tokenizers" / "mistral_v1_spm")
    else:
        corpus = from_data(data_folder, 2000, seed=1)
        tokenizer = SentencePieceTokenizer.train(corpus, 4000, kind, special_tokens=MARKS)
    exported = to_huggingface(tokenizer)
    same_ids(tokenizer, exported, texts)
    exported.save(tmp_path)
    same_as_auto_tokenizer(exported, tmp_path, texts)


@pytest.mark.parametrize("prefix", [b"", DUMMY_PREFIX], ids=["plain", "dummy prefix"])
@pytest.mark.parametrize("template", [QUESTION_ANSWER, CHATML], ids=lambda t: t.name)
def test_conversations(trained, tmp_path, template, prefix):
    tokenizer = SentencePieceTokenizer(trained.model + prefix)
    exported = to_huggingface(tokenizer)
    exported.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    theirs.chat_template = chat_template_jinja(template, "<|image|><|image|>")
    image = {"type": "image", "image": "x"}
    questions = ["What is this?", " two  blanks", "\nline", "é 漢\u2581", "is it <b> 12?"]
    for lead in ([], [{"role": "system", "content": "Be brief."}]):
        messages = list(lead)
        for number, question in enumerate(questions):
            parts = [image] * (2 - number % 3) + [{"type": "text", "text": question}]
            parts += [image] * (number == 3)
            messages.append({"role": "user", "content": parts})
            for prompt in (True, False):
                if not prompt:
                    messages.append({"role": "assistant", "content": f"answer {number}."})
                expected = theirs.apply_chat_template(
                    messages, add_generation_prompt=prompt, return_dict=False
                )
                for own in (tokenizer, exported):
                    encoded = encode_conversation(
                        messages,
                        own,
                        template,
                        image_token_id=own.token_to_id("<|image|>"),
                        tokens_per_image=2,
                        add_generation_prompt=prompt,
                    )
                    assert encoded.token_ids == expected


def test_a_tokenizer_in_that_format_is_returned_as_it_is(byte_tokenizer):
    assert to_huggingface(byte_tokenizer) is byte_tokenizer


def test_the_original_stays_as_it_was(trained):
    before = copy.deepcopy(trained)
    to_huggingface(trained).add_special_tokens(["<new>"])
    assert trained.special_tokens == before.special_tokens
    assert trained.vocab_size == before.vocab_size


def other_model(folder, **options):
    settings = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    settings |= {"byte_fallback": True, "vocab_size": 300, "model_type": "bpe"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the bear is brown", "a bear"]),
        model_prefix=str(folder / "m"),
        hard_vocab_limit=False,
        minloglevel=2,
        **(settings | options),
    )
    return SentencePieceTokenizer((folder / "m.model").read_bytes())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalization_rule_name": "nmt_nfkc"}, "normalizes text, which"),
        ({"remove_extra_whitespaces": True}, "trims blanks, which"),
        ({"byte_fallback": False, "vocab_size": 40}, "has no bytes to fall back to, which"),
        ({"user_defined_symbols": ["<x>"]}, "has pieces that a user defined, which"),
        ({"treat_whitespace_as_suffix": True}, "puts blanks behind words, which"),
        ({"model_type": "char"}, "is neither BPE nor unigram, which"),
    ],
)
def test_models_that_cannot_be_repeated(tmp_path, options, message):
    to_huggingface(other_model(tmp_path))
    with pytest.raises(ValueError, match=message):
        to_huggingface(other_model(tmp_path, **options))


def test_characters_cannot_be_exported():
    with pytest.raises(ValueError, match="a CharacterTokenizer cannot be written"):
        to_huggingface(CharacterTokenizer())
