"""Conversations have the ids that transformers gives them: templates, and the layout of images."""

import random
import re

import pytest
from sentences import handmade
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.smolvlm.processing_smolvlm import (
    DEFAULT_CHAT_TEMPLATE,
    get_image_prompt_string,
)

from dl_techniques.preprocessing.chat_template import (
    CHATML,
    IDEFICS3,
    NVLM,
    QUESTION_ANSWER,
    QWEN2,
    SMOLLM2,
    SMOLVLM,
    TEMPLATES,
    encode_conversation,
)
from dl_techniques.preprocessing.chat_template_jinja import chat_template_jinja
from dl_techniques.preprocessing.tokenizer import load_tokenizer

pytestmark = pytest.mark.no_backend

# As nanoVLM and SmolLM2-Instruct publish them.
TURNS = (
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NANOVLM_JINJA = "{% for message in messages %}" + TURNS
DEFAULT_JINJA = (
    "{%% for message in messages %%}{%% if loop.first and messages[0]['role'] != 'system' %%}"
    "{{ '<|im_start|>system\\n%s<|im_end|>\\n' }}{%% endif %%}"
)
SMOLLM_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
SMOLLM2_JINJA = DEFAULT_JINJA % SMOLLM_SYSTEM + TURNS
NVLM_JINJA = DEFAULT_JINJA % "Follow the user\\'s instruction and answer questions." + TURNS
IDEFICS3_JINJA = DEFAULT_CHAT_TEMPLATE.replace("<|im_start|>", "<|begin_of_text|>")

EXTRA = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<|begin_of_text|>"]
EXTRA += ["<global-img>", *(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7))]
EXTRA += TEMPLATES["ghostvis"].markers
# Texts in which transformers sees special tokens, and bytes that SmolLM2 lacks.
OTHER = re.compile(r"<\|?[\w/-]+\|?>|[\x00-\x08\x0e-\x1f]")
TEXTS = [text for text in handmade() if not OTHER.search(text) and len(text) < 120]


@pytest.fixture(scope="module")
def small(byte_tokenizer, tmp_path_factory):
    """The tests' byte tokenizer with more special tokens, and transformers' view of it."""
    folder = tmp_path_factory.mktemp("byte")
    byte_tokenizer.save(folder)
    ours = load_tokenizer(folder)
    ours.add_special_tokens(EXTRA)
    ours.save(folder)
    return ours, AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def smollm2(data_folder):
    folder = data_folder / "tokenizers" / "smollm2"
    ours, theirs = load_tokenizer(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    ours.add_special_tokens(EXTRA)
    theirs.add_tokens(EXTRA, special_tokens=True)
    return ours, theirs


@pytest.fixture(scope="module")
def qwen2(data_folder):
    folder = data_folder / "tokenizers" / "qwen2.5"
    return load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(params=["small", "smollm2", "qwen2"])
def both(request):
    return request.getfixturevalue(request.param)


def conversations(texts, seed=0):
    """One to six turns from the user's to the assistant's, with and without a system turn."""
    choose = random.Random(seed)
    for count in [1, 2, 3, 4, 5, 6] * 8:
        lead = [{"role": "system", "content": choose.choice(texts)}] * choose.randint(0, 1)
        turns = []
        for number in range(count):
            content = choose.choice(texts)
            if number % 2 and not content.strip():
                content += "so"
            turns.append({"role": ("user", "assistant")[number % 2], "content": content})
        yield lead + turns


def runs(ids, special):
    """The ids between special tokens, and these."""
    found = [[]]
    for token_id in ids:
        if token_id in special:
            found += [token_id, []]
        else:
            found[-1].append(token_id)
    return found


def compare(pair, template, jinja, in_parts=False, texts=TEXTS):
    """Prompts are equal; whole conversations differ only where an answer begins with blanks.

    There transformers tokenizes the line feed before the answer together with these blanks.
    """
    ours, theirs = pair
    special = set(ours.special_tokens.values())
    prompts = different = 0
    for messages in conversations(texts):
        prompt = messages[-1]["role"] == "user"
        shown = messages
        if in_parts:
            shown = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        expected = theirs.apply_chat_template(
            shown, chat_template=jinja, add_generation_prompt=prompt, return_dict=False
        )
        for given in (messages, shown):
            ids = encode_conversation(given, ours, template, add_generation_prompt=prompt).token_ids
            if len(messages) <= 2 and prompt:
                prompts += 1
                assert ids == expected
            if ids == expected:
                continue
            different += 1
            blank_answers = 0
            for mine, other in zip(runs(ids, special), runs(expected, special), strict=True):
                if mine != other:
                    assert ours.decode(mine) == ours.decode(other)
                    assert re.match(r"assistant\n\s", ours.decode(mine))
                    blank_answers += 1
            answers = [m["content"] for m in messages if m["role"] == "assistant"]
            assert 0 < blank_answers <= sum(a[:1].isspace() for a in answers)
    assert prompts >= 8
    return different


CHATML_LIKE = [(CHATML, NANOVLM_JINJA), (SMOLLM2, SMOLLM2_JINJA), (NVLM, NVLM_JINJA)]


@pytest.mark.parametrize(("template", "jinja"), CHATML_LIKE, ids=lambda t: getattr(t, "name", ""))
def test_chatml_and_its_default_system_turns(small, template, jinja):
    compare(small, template, jinja)


@pytest.mark.data
@pytest.mark.parametrize(("template", "jinja"), CHATML_LIKE, ids=lambda t: getattr(t, "name", ""))
def test_chatml_with_published_vocabularies(smollm2, qwen2, template, jinja):
    compare(smollm2, template, jinja)
    compare(qwen2, template, jinja)
    plain = [text for text in TEXTS if not text[:1].isspace()]
    assert compare(smollm2, template, jinja, texts=plain) == 0
    assert compare(qwen2, template, jinja, texts=plain) == 0


@pytest.mark.data
def test_qwen2_as_it_is_published(data_folder, qwen2):
    file = data_folder / "tokenizers" / "qwen2.5" / "chat_template.jinja"
    compare(qwen2, QWEN2, file.read_text(encoding="utf-8"))


SMOLVLM_LIKE = [(SMOLVLM, DEFAULT_CHAT_TEMPLATE), (IDEFICS3, IDEFICS3_JINJA)]


@pytest.mark.parametrize(("template", "jinja"), SMOLVLM_LIKE, ids=lambda t: getattr(t, "name", ""))
def test_smolvlm_and_idefics3(small, template, jinja):
    # Answers begin with a blank, where transformers cuts the text, too.
    assert compare(small, template, jinja, in_parts=True) == 0


@pytest.mark.data
@pytest.mark.parametrize(("template", "jinja"), SMOLVLM_LIKE, ids=lambda t: getattr(t, "name", ""))
def test_smolvlm_and_idefics3_with_smollm2(smollm2, template, jinja):
    assert compare(smollm2, template, jinja, in_parts=True) == 0


def jinja_ids(pair, template, messages, prompt, image_token="<|image|>"):
    return pair[1].apply_chat_template(
        messages,
        chat_template=chat_template_jinja(template, image_token),
        add_generation_prompt=prompt,
        return_dict=False,
    )


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("in_parts", [False, True])
def test_our_templates_as_jinja(small, template, in_parts):
    different = compare(small, template, chat_template_jinja(template), in_parts)
    assert different == 0 or template.assistant[0].endswith("\n")


@pytest.mark.data
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_our_templates_as_jinja_with_smollm2(smollm2, template):
    compare(smollm2, template, chat_template_jinja(template))


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("mark", ["<|image|>", "<image>"])
def test_images_in_our_jinja(small, template, mark):
    ours = small[0]
    image = {"type": "image", "image": "x"}

    def text(content):
        return {"type": "text", "text": content}

    for parts in (
        [image, text("a")],
        [text("a"), image],
        [image, image, text("a"), image, text("b")],
        [image],
        [text(""), image, text("b")],
        [],
    ):
        messages = [{"role": "user", "content": parts}]
        messages += [{"role": "assistant", "content": [text("x"), text("y")]}]
        messages += [{"role": "user", "content": "plain"}]
        for cut in (1, 2, 3):
            encoded = encode_conversation(
                messages[:cut],
                ours,
                template,
                image_token_id=ours.token_to_id(mark),
                tokens_per_image=1,
                add_generation_prompt=cut != 2,
            )
            expected = jinja_ids(small, template, messages[:cut], cut != 2, mark)
            assert encoded.token_ids == expected


@pytest.mark.data
@pytest.mark.parametrize("legacy", [False, True])
def test_a_dummy_prefix_only_at_the_start_or_after_every_special_token(
    data_folder, tmp_path, legacy
):
    folder = data_folder / "tokenizers" / "mistral_v1_spm"
    theirs = LlamaTokenizer.from_pretrained(folder, legacy=legacy)
    theirs.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert compare((ours, theirs), QUESTION_ANSWER, chat_template_jinja(QUESTION_ANSWER)) == 0
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    ids = encode_conversation(turns, ours, QUESTION_ANSWER).token_ids
    ids += encode_conversation(turns, ours, QUESTION_ANSWER, continues=True).token_ids
    assert ids == encode_conversation(turns * 2, ours, QUESTION_ANSWER).token_ids


def test_our_jinja_refuses_what_the_template_cannot_follow(small):
    turn = {"role": "user", "content": "q"}
    for messages in ([turn, turn], [{"role": "assistant", "content": "a"}]):
        with pytest.raises(Exception, match="the assistant answers every user message"):
            jinja_ids(small, QUESTION_ANSWER, messages, False)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_our_jinja_refuses_other_roles(small, template):
    with pytest.raises(Exception, match="the role must be system, user or assistant"):
        jinja_ids(small, template, [{"role": "tool", "content": "1"}], False)


# The layout of images


def smolvlm_layout(rows, columns):
    """What stands in the text for an image in `rows` x `columns` tiles and a small whole one."""
    parts, tile = [], 0
    for row in range(rows):
        for column in range(columns):
            parts += ["<fake_token_around_image>", f"<row_{row + 1}_col_{column + 1}>", tile]
            tile += 1
        parts.append("\n")
    parts += ["\n"] if rows else []
    return (*parts, "<fake_token_around_image>", "<global-img>", tile, "<fake_token_around_image>")


def idefics3_string(rows, columns, length):
    """Idefics3Processor's string, without the image processor that it needs otherwise."""
    processor = object.__new__(Idefics3Processor)
    processor.fake_image_token, processor.image_token = "<fake_token_around_image>", "<image>"
    processor.global_image_tag, processor.image_seq_len = "<global-img>", length
    return processor.replace_image_token({"rows": [[rows]], "cols": [[columns]]}, 0)


@pytest.mark.parametrize("tokenizer", ["small", pytest.param("smollm2", marks=pytest.mark.data)])
@pytest.mark.parametrize(("template", "jinja"), SMOLVLM_LIKE, ids=lambda t: getattr(t, "name", ""))
def test_the_layout_of_smolvlm(request, tokenizer, template, jinja):
    ours, theirs = request.getfixturevalue(tokenizer)
    grids = {"a": (0, 0), "b": (3, 4), "c": (1, 2), "d": (6, 6)}
    calls = []

    def layout(image, number, count):
        calls.append((image, number, count))
        return smolvlm_layout(*grids[image])

    def part(content):
        kind = "image" if content in grids else "text"
        return {"type": kind, kind: content}

    for contents in (
        [["a", "What is this?"], ["Yes."]],
        [["b", "c", " and\n"], ["Two."], ["More: ", "d", "\nso?"]],
        [["Look: ", "b"], ["No."], ["a"]],
    ):
        messages = [
            {"role": ("user", "assistant")[n % 2], "content": [part(c) for c in content]}
            for n, content in enumerate(contents)
        ]
        prompt = messages[-1]["role"] == "user"
        text = theirs.apply_chat_template(
            messages, chat_template=jinja, add_generation_prompt=prompt, tokenize=False
        )
        images = [c for content in contents for c in content if c in grids]
        for image in images:
            expanded = get_image_prompt_string(
                *grids[image], 5, "<fake_token_around_image>", "<IMAGE>", "<global-img>"
            )
            assert expanded.replace("<IMAGE>", "<image>") == idefics3_string(*grids[image], 5)
            text = text.replace("<image>", expanded, 1)
        calls.clear()
        encoded = encode_conversation(
            messages,
            ours,
            template,
            image_token_id=ours.token_to_id("<image>"),
            tokens_per_image=5,
            image_layout=layout,
            add_generation_prompt=prompt,
        )
        expected = theirs.encode(text.replace("<IMAGE>", "<image>"), add_special_tokens=False)
        assert encoded.token_ids == expected
        assert calls == [(image, n, len(images)) for n, image in enumerate(images)]
        assert encoded.tiles == [grids[image][0] * grids[image][1] + 1 for image in images]
        assert expected.count(ours.token_to_id("<image>")) == 5 * sum(encoded.tiles)
