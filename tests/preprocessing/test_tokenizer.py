import ast
import copy
import gzip
import json
import pickle
import shutil
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

import dl_techniques.preprocessing.tokenizer as tokenizer_module
from dl_techniques.preprocessing.tokenizer import (
    CharacterTokenizer,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    load_tokenizer,
)

BATTERY = [
    "",
    " ",
    "What color is the bear?",
    "  two  blanks\tand\r\nlines\n\n",
    "\u2581 blank mark \u2581\u2581",
    "é e\u0301 漢字 😀 \ufeff \ufffd \x00\x07 \u2585",
    "<|im_start|>user\n<|im_end|> </s> <s> <pad> <unk> <0x41> <|endoftext|>",
    "0123456789 users use 12!\n",
]
# Any text, and text made of what could confuse: spellings of special tokens, blanks, byte pieces.
TRAPS = st.sampled_from(["<|im_end|>", "<|image|>", "</s>", "<unk>", "<0x41>", "\u2581", " ", "\n"])
any_text = st.lists(st.text(max_size=8) | TRAPS, max_size=6).map("".join)


@settings(max_examples=150)
@given(text=any_text)
def test_every_text_round_trips_without_special_ids(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.special_tokens.values())
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids, skip_special=True) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


def test_special_tokens_are_the_bytes_of_their_spelling(tokenizer):
    ids = tokenizer.encode("a<|im_end|>b", allow_special=True)
    assert list(map(tokenizer.token_bytes, ids)) == [b"a", b"<|im_end|>", b"b"]
    with pytest.raises(ValueError, match="outside"):
        tokenizer.token_bytes(tokenizer.vocab_size)


def test_special_spellings_are_read_only_when_allowed(byte_tokenizer):
    text = "a<|im_end|>b"
    assert byte_tokenizer.encode(text) == list(text.encode())
    assert byte_tokenizer.encode(text, allow_special=True) == [97, 265, 98]
    assert byte_tokenizer.decode([97, 265, 98]) == text
    assert byte_tokenizer.decode([97, 265, 98], skip_special=True) == "ab"


def test_the_longest_special_spelling_wins(byte_tokenizer):
    copied = copy.deepcopy(byte_tokenizer)
    short, long = copied.add_special_tokens(["<img", "<img>"])
    assert copied.encode("<img><img", allow_special=True) == [long, short]


def test_encode_gives_a_fresh_list(tokenizer):
    first = tokenizer.encode("the bear")
    expected = list(first)
    first.append(-1)
    assert tokenizer.encode("the bear") == expected


def test_added_special_tokens_come_last_and_stay(tokenizer):
    copied = copy.deepcopy(tokenizer)
    before, size = copied.encode("<tile> user"), copied.vocab_size
    known = copied.token_to_id("<|im_end|>")
    assert copied.add_special_tokens(["<tile>", "<|im_end|>", "<sep é>"]) == [size, known, size + 1]
    assert copied.add_special_tokens(["<tile>"]) == [size]
    assert copied.vocab_size == size + 2
    assert copied.encode("<tile> user") == before
    assert copied.encode("<tile>", allow_special=True) == [size]
    assert copied.decode([size + 1]) == "<sep é>"
    assert tokenizer.vocab_size == size


def test_adding_a_spelling_ends_cached_answers_only_where_allowed(byte_tokenizer):
    copied = copy.deepcopy(byte_tokenizer)
    assert copied.encode("<x>", allow_special=True) == [60, 120, 62]
    copied.add_special_tokens(["<x>"])
    assert copied.encode("<x>") == [60, 120, 62]
    assert copied.encode("<x>", allow_special=True) == [267]


@pytest.mark.parametrize("token", ["", "he", "user", None])
def test_tokens_that_text_produces_cannot_become_special(byte_tokenizer, token):
    copied = copy.deepcopy(byte_tokenizer)
    with pytest.raises(ValueError, match="special token"):
        copied.add_special_tokens([token])
    assert copied.special_tokens == byte_tokenizer.special_tokens
    assert copied.encode("user he") == byte_tokenizer.encode("user he")


def test_sentencepiece_pieces_cannot_become_special(spm_tokenizer):
    for token in ("<0x41>", "is"):
        with pytest.raises(ValueError, match="ordinary piece"):
            copy.deepcopy(spm_tokenizer).add_special_tokens([token])


def test_errors_of_the_interface(tokenizer):
    with pytest.raises(ValueError, match="no token '<nope>'"):
        tokenizer.token_to_id("<nope>")
    with pytest.raises(ValueError, match="outside the tokenizer's vocabulary"):
        tokenizer.decode([tokenizer.vocab_size])
    with pytest.raises(ValueError, match="outside the tokenizer's vocabulary"):
        tokenizer.decode([-1])
    with pytest.raises(ValueError, match="lone surrogate at position 1"):
        tokenizer.encode("a\ud800")
    with pytest.raises(ValueError, match="needs a string"):
        tokenizer.encode(b"a")
    with pytest.raises(ValueError, match="list of tokens"):
        tokenizer.add_special_tokens("<a>")


def same(first, second):
    assert [first.encode(text) for text in BATTERY] == [second.encode(text) for text in BATTERY]
    assert list(first.special_tokens.items()) == list(second.special_tokens.items())
    for name in ("vocab_size", "pad_id", "bos_id", "eos_id"):
        assert getattr(first, name) == getattr(second, name), name
    everything = list(range(first.vocab_size))
    assert first.decode(everything) == second.decode(everything)


@pytest.mark.parametrize("kind", ["byte", "spm", "character"])
def test_saved_loaded_and_pickled_tokenizers_are_the_same(
    kind, byte_tokenizer, spm_tokenizer, tmp_path
):
    made = {"byte": byte_tokenizer, "spm": spm_tokenizer, "character": CharacterTokenizer(300)}
    changed = copy.deepcopy(made[kind])
    changed.add_special_tokens(["<tile é>", "<end of tile>"])
    changed.save(tmp_path / "new" / "folder")
    loaded = load_tokenizer(tmp_path / "new" / "folder")
    assert type(loaded) is type(changed)
    same(changed, loaded)
    same(changed, pickle.loads(pickle.dumps(changed)))
    changed.save(tmp_path / "new" / "folder")  # saving again into one's own folder is fine
    same(changed, load_tokenizer(tmp_path / "new" / "folder"))


def test_save_refuses_a_folder_that_would_load_something_else(
    byte_tokenizer, spm_tokenizer, tmp_path
):
    byte_tokenizer.save(tmp_path)
    for other in (spm_tokenizer, CharacterTokenizer()):
        with pytest.raises(ValueError, match=r"another tokenizer \(tokenizer.json\)"):
            other.save(tmp_path)
    same(byte_tokenizer, load_tokenizer(tmp_path))


# SentencePiece


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_training_is_deterministic_and_has_the_documented_ids(model_type):
    texts = ["the red circle", "the blue circle and the red star", "star\t\0 end"]
    train = SentencePieceTokenizer.train
    first = train(iter(texts), 320, model_type, special_tokens=["<|image|>"])
    again = train(texts, 320, model_type, special_tokens=["<|image|>"])
    same(first, again)
    assert first.special_tokens == {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<|image|>": 4}
    assert (first.pad_id, first.bos_id, first.eos_id) == (0, 1, 2)
    assert 265 < first.vocab_size <= 320
    assert len(first.encode("the red circle")) < 10  # it learned more than letters
    for text in BATTERY:
        assert first.decode(first.encode(text)) == text


def test_long_texts_and_marks_are_not_left_out_of_training():
    text = "the red circle " * 1000 + "\t\0\u2581"
    trained = SentencePieceTokenizer.train([text], 300)
    assert trained.token_to_id("\u2581circle") > 260
    assert trained.decode(trained.encode(text)) == text


def test_training_is_quiet(capfd):
    SentencePieceTokenizer.train(["some text"], 300)
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


def test_training_errors():
    train = SentencePieceTokenizer.train
    with pytest.raises(ValueError, match="could not train"):
        train([], 300)
    with pytest.raises(ValueError, match="at least 262"):
        train(["a"], 261, special_tokens=["<a>"])
    with pytest.raises(ValueError, match="unique"):
        train(["a"], 300, special_tokens=["</s>"])
    with pytest.raises(ValueError, match="model_type"):
        train(["a"], 300, "word")
    with pytest.raises(ValueError, match="not one string"):
        train("a", 300)


@pytest.fixture(scope="module")
def prefixed_model(tmp_path_factory):
    """A model as Llama's: a dummy blank before every text, bytes for unknown characters."""
    prefix = tmp_path_factory.mktemp("spm") / "m"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the bear is brown", "a bear"]),
        model_prefix=str(prefix),
        vocab_size=300,
        model_type="bpe",
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return prefix.with_suffix(".model").read_bytes()


def test_a_dummy_prefix_is_kept_and_left_out_where_text_continues(prefixed_model):
    tokenizer = SentencePieceTokenizer(prefixed_model)
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (None, 1, 2)
    bear = tokenizer.token_to_id("\u2581bear")
    assert tokenizer.encode("bear") == [bear]
    assert tokenizer.encode(" bear", continues=True) == [bear]
    assert tokenizer.encode("bear", continues=True) != [bear]
    # Also before the character that SentencePiece itself writes for a blank.
    blank = tokenizer.token_to_id("\u2581")
    assert tokenizer.encode("\u2581a")[:2] == [blank, tokenizer.token_to_id("<0xE2>")]
    assert tokenizer.encode("\u2581a", continues=True)[0] == tokenizer.token_to_id("<0xE2>")
    joined = tokenizer.encode("a") + tokenizer.encode(" bear", continues=True)
    assert tokenizer.decode(joined) == "a bear"
    apart = tokenizer.encode("a</s>bear", allow_special=True)
    assert apart[-2:] == [2, bear] and tokenizer.decode(apart) == "a</s>bear"
    assert tokenizer.token_bytes(bear) == b" bear" and tokenizer.token_bytes(blank) == b" "
    for text in BATTERY:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        ids = tokenizer.encode(text, continues=True)
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


def test_sentencepiece_folder_errors(spm_tokenizer, tmp_path):
    spm_tokenizer.save(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<a>": 9999}')
    with pytest.raises(ValueError, match="'<a>' the id 9999"):
        load_tokenizer(tmp_path)
    (tmp_path / "added_tokens.json").write_text("[]")
    with pytest.raises(ValueError, match="added_tokens.json must hold a JSON object"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"garbage " * 9)
    with pytest.raises(ValueError, match="cannot read .*tokenizer.model"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="no SentencePiece model"):
        SentencePieceTokenizer(b"")


# Hugging Face files


def test_the_pre_tokenizers_differ_as_their_models_do(byte_files):
    def ids(pre_tokenizer, text):
        return HuggingFaceTokenizer.load(byte_files, pre_tokenizer=pre_tokenizer).encode(text)

    assert ids("gpt2", "12") == [260] and ids("gpt2", "!\n") == [33, 10]
    assert ids("smollm2", "12") == [49, 50] and ids("smollm2", "!\n") == [33, 10]
    assert ids("qwen2", "12") == [49, 50] and ids("qwen2", "!\n") == [261]
    assert ids("qwen2", "e\u0301") == [*"é".encode()] != ids("gpt2", "e\u0301")
    assert load_tokenizer(byte_files).encode("user12") == [259, 260]
    with pytest.raises(ValueError, match="pre_tokenizer must be one of"):
        ids("bert", "12")


def folder_with(byte_files, tmp_path, **files):
    folder = tmp_path / "tokenizer"
    shutil.copytree(byte_files, folder)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_a_folder_in_hugging_face_layout(byte_files, tmp_path):
    folder = folder_with(
        byte_files,
        tmp_path,
        added_tokens={"<|im_end|>": 263, "<|pad|>": 262, "<tool>": 264},
        tokenizer_config={
            "tokenizer_class": "Qwen2Tokenizer",
            "bos_token": None,
            "eos_token": {"content": "<|im_end|>"},
            "added_tokens_decoder": {"264": {"content": "<tool>", "special": False}},
        },
        special_tokens_map={"bos_token": "<|pad|>", "pad_token": "<|pad|>"},
    )
    loaded = load_tokenizer(folder)
    assert loaded.special_tokens == {"<|pad|>": 262, "<|im_end|>": 263}
    assert (loaded.pad_id, loaded.bos_id, loaded.eos_id) == (262, None, 263)
    assert loaded.encode("12") == [49, 50]
    assert loaded.encode("<tool><|im_end|>") == [264, *b"<|im_end|>"]
    assert loaded.decode([264, 263], skip_special=True) == "<tool>"
    loaded.save(folder)  # now with a tokenizer.json, beside a map that says otherwise
    same(loaded, load_tokenizer(folder))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"added_tokens": {"<a>": 300}}, "'<a>' the id 300"),
        ({"added_tokens": {"<a>": "262"}}, "which cannot be"),
        ({"tokenizer_config": {"eos_token": "<nope>"}}, "<nope>.*no id"),
        ({"tokenizer_config": {"tokenizer_class": "BertTokenizer"}}, "written by BertTokenizer"),
        ({"tokenizer_config": {"eos_token": 3}}, "eos_token in .* must be a string"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": 1}}}, "added_tokens_decoder in"),
        ({"tokenizer": {}}, "cannot read .*tokenizer.json"),
        ({"vocab": {"a": 0}}, "cannot read .*vocab.json with .*merges.txt"),
    ],
)
def test_contradictory_or_corrupt_folders_are_refused(byte_files, tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        load_tokenizer(folder_with(byte_files, tmp_path, **files))


def test_clip_files_with_something_missing_are_refused(byte_files, tmp_path):
    with pytest.raises(ValueError, match="lacks 256 of the 256 bytes, with </w> or not"):
        HuggingFaceTokenizer.load(byte_files, pre_tokenizer="clip")
    path = tmp_path / "bpe.txt.gz"
    with pytest.raises(ValueError, match=r"cannot read .*bpe\.txt\.gz"):
        HuggingFaceTokenizer.from_clip_bpe(path)
    whole = gzip.compress(b"#version\n" + b"a b\n" * 100)
    for content in (b"no archive", whole[:-9], gzip.compress(b"\xff"), whole):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot read .*bpe\.txt\.gz"):
            HuggingFaceTokenizer.from_clip_bpe(path)


def test_an_ordinary_added_token_can_become_special(byte_files, tmp_path):
    folder = folder_with(byte_files, tmp_path, added_tokens={"<tool>": 262})
    config = {"added_tokens_decoder": {"262": {"content": "<tool>", "special": False}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    load_tokenizer(folder).save(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["pre_tokenizer"]["add_prefix_space"] = True
    (folder / "tokenizer.json").write_text(json.dumps(content))
    loaded = load_tokenizer(folder)
    assert loaded.encode("a") == [32, 97] and loaded.encode("a", continues=True) == [97]
    assert loaded.encode("a<tool>", continues=True) == [97, 262]
    with pytest.raises(ValueError, match="no special token"):
        loaded._set_named({"eos": "<tool>"})


def test_missing_files_are_named(byte_files, tmp_path):
    with pytest.raises(ValueError, match="no tokenizer in"):
        load_tokenizer(tmp_path)
    shutil.copy(byte_files / "vocab.json", tmp_path)
    with pytest.raises(ValueError, match="merges.txt: there is no such file"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="cannot read .*absent.json"):
        HuggingFaceTokenizer.from_file(tmp_path / "absent.json")


def test_truncation_and_padding_of_a_file_are_switched_off(byte_tokenizer, tmp_path):
    byte_tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    path.write_text(json.dumps(content))
    assert load_tokenizer(tmp_path).encode("abcdefgh") == list(b"abcdefgh")


def test_a_vocabulary_without_all_bytes_refuses_text_instead_of_losing_it(byte_files, tmp_path):
    folder = folder_with(byte_files, tmp_path)
    vocab = json.loads((folder / "vocab.json").read_text())
    lost = next(piece for piece, i in vocab.items() if i == 7)
    vocab["<|spare|>"] = vocab.pop(lost)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    loaded = load_tokenizer(folder)
    assert loaded.encode("ab") == [97, 98]
    with pytest.raises(ValueError, match=r"no id for the character U\+0007"):
        loaded.encode("a\x07b")
    # In the vocabulary, but out of the text's reach: it may become special and keeps its id.
    assert loaded.add_special_tokens(["<|spare|>"]) == [7]


def test_named_tokens_must_be_special(byte_files):
    paths = (byte_files / "vocab.json", byte_files / "merges.txt")
    with pytest.raises(ValueError, match="eos_token is '<end>', which is no special token"):
        HuggingFaceTokenizer.from_vocab_and_merges(*paths, eos_token="<end>")


# Characters


def test_character_tokenizer_follows_the_guide():
    tokenizer = CharacterTokenizer()
    assert tokenizer.encode("Hi 漢!") == [104, 105, 32, 28450, 33]
    assert tokenizer.encode("😀") == [31999]
    assert tokenizer.decode([1, 104, 105, 2]) == "<bos>hi<eos>"
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.bos_id) == (32000, 0, 1)
    assert tokenizer.eos_id == 2
    assert tokenizer.add_special_tokens(["<|image|>"]) == [32000]
    assert tokenizer.encode("<|image|>😀")[-1] == 31999
    assert max(tokenizer.encode("<|image|>")) < 128


def test_character_tokenizer_errors():
    with pytest.raises(ValueError, match="bos_id must be an id of its own"):
        CharacterTokenizer(bos_id=0)
    with pytest.raises(ValueError, match="pad_id must be an id of its own below 10"):
        CharacterTokenizer(10, pad_id=10)
    with pytest.raises(ValueError, match="cannot be a special token"):
        CharacterTokenizer(eos_id=ord("e"))
    with pytest.raises(ValueError, match="ordinary character"):
        CharacterTokenizer().add_special_tokens(["e"])


def test_text_modules_import_no_backend():
    folder = Path(tokenizer_module.__file__).parent
    for name in ("tokenizer*", "*_tokenizer", "chat_template", "messages"):
        for path in folder.glob(f"{name}.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in getattr(node, "names", [])]
                names = [getattr(node, "module", None) or name for name in names]
                for imported in names if isinstance(node, ast.Import | ast.ImportFrom) else []:
                    root = imported.split(".")[0]
                    assert root not in ("keras", "jax", "torch", "tensorflow"), (path, imported)
                    if root == "dl_techniques":
                        assert imported.startswith("dl_techniques.preprocessing."), (path, imported)
