import io

import numpy as np
import pytest
from PIL import Image

from dl_techniques.datasets.image_place import ImagePlace
from dl_techniques.datasets.rows import messages_with_images
from dl_techniques.datasets.samples import normalize_sample
from dl_techniques.datasets.schemas import SCHEMAS, check_schema, detect_schema
from dl_techniques.preprocessing.images import load_image

pytestmark = pytest.mark.no_backend


def png(value=0):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


PNG = png()
STORED = {"bytes": PNG, "path": "x.png"}


def sample(sample_id, source, images, *texts, **more):
    """A sample whose texts are question, answer, question, ..."""
    roles = ["user", "assistant"] * len(texts)
    messages = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
    return {"images": images, "messages": messages, "source": source, "id": sample_id, **more}


def vqa_answers(*answers):
    return [
        {"answer": answer, "answer_confidence": "yes", "answer_id": number}
        for number, answer in enumerate(answers, start=1)
    ]


TEN = ["net"] * 3 + ["a net", "nets"] + ["mesh"] * 4 + ["no"]
CHOICES = "What?\nA. a cat\nB. a dog\nAnswer with the letter of the right choice."
CAPTION = "<|image|>\nDescribe this image."

# schema, row in its public layout, samples
ROWS = [
    (
        "the_cauldron",
        {
            "images": [STORED],
            "texts": [
                {"user": "One?", "assistant": "1", "source": "VQAv2"},
                {"user": "Two?", "assistant": "2", "source": "VQAv2"},
            ],
        },
        [sample("", "VQAv2", [PNG], "One?", "1", "Two?", "2")],
    ),
    (
        "finevision",
        {
            "images": [STORED, {"bytes": None, "path": "b.png"}],
            "texts": [{"user": "One?", "assistant": "1"}, {"user": "Two?", "assistant": "2"}],
            "source": "aokvqa",
            "relevance_ratings": [5, None],
            "relevance_min": 5,
            "visual_dependency_ratings": None,
            "visual_dependency_min": None,
            "image_correspondence_ratings": [],
            "image_correspondence_min": None,
            "formatting_ratings": [1, 1],
            "formatting_min": 1,
        },
        [sample("", "aokvqa", [PNG, "b.png"], "One?", "1", "Two?", "2")],
    ),
    (
        "llava",
        {
            "id": "000000033471",
            "image": "coco/train2017/000000033471.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat colour?"},
                {"from": "gpt", "value": "Red, not <image>."},
                {"from": "human", "value": "Why?"},
                {"from": "gpt", "value": "It is."},
            ],
        },
        [
            sample(
                "000000033471",
                "llava",
                ["coco/train2017/000000033471.jpg"],
                "<|image|>\nWhat colour?",
                "Red, not <image>.",
                "Why?",
                "It is.",
            )
        ],
    ),
    (
        "llava",
        {
            "id": "text",
            "conversations": [
                {"from": "human", "value": "What is <image> in HTML?"},
                {"from": "gpt", "value": "A tag."},
            ],
        },
        [sample("text", "llava", [], "What is <image> in HTML?", "A tag.")],
    ),
    (
        "sharegpt4v",
        {
            "id": "sa_1",
            "image": "sam/images/sa_1.jpg",
            "conversations": [
                {"from": "human", "value": "Describe it.\n<image>"},
                {"from": "gpt", "value": "A barn."},
            ],
        },
        [
            sample(
                "sa_1", "sharegpt4v", ["sam/images/sa_1.jpg"], "Describe it.\n<|image|>", "A barn."
            )
        ],
    ),
    (
        "vqav2",  # lmms-lab and HuggingFaceM4
        {
            "question_type": "what is this",
            "multiple_choice_answer": "net",
            "answers": vqa_answers(*TEN),
            "image_id": 458752,
            "answer_type": "other",
            "question_id": 458752000,
            "question": "What is this?",
            "image": STORED,
        },
        [sample("458752000", "vqav2", [PNG], "What is this?", "net", answers=TEN)],
    ),
    (
        "vqav2",  # official, joined
        {
            "data_subtype": "val2014",
            "image_id": 262148,
            "question": "Where?",
            "question_id": 262148000,
            "question_type": "where",
            "multiple_choice_answer": "down",
            "answers": vqa_answers("down", "up", "down"),
            "answer_type": "other",
        },
        [
            sample(
                "262148000",
                "vqav2",
                ["COCO_val2014_000000262148.jpg"],
                "Where?",
                "down",
                answers=["down", "up", "down"],
            )
        ],
    ),
    (
        "okvqa",  # lmms-lab
        {
            "question_id": "2971475",
            "image": STORED,
            "question": "What sport?",
            "answers": TEN,
            "question_type": "eight",
            "answer_type": "other",
        },
        [sample("2971475", "okvqa", [PNG], "What sport?", "mesh", answers=TEN)],
    ),
    (
        "textvqa",
        {
            "image_id": "003a8ae2ef43b901",
            "question_id": 34602,
            "question": "what brand?",
            "question_tokens": ["what", "brand"],
            "image": STORED,
            "image_width": 1024,
            "image_height": 664,
            "flickr_original_url": "https://x/y.jpg",
            "flickr_300k_url": "https://x/z.jpg",
            "answers": ["nous", "dakota", "dakota", "", "", "", "", "", "", ""],
            "image_classes": ["Camera"],
            "set_name": "val",
            "ocr_tokens": ["DAKOTA"],
        },
        [
            sample(
                "34602",
                "textvqa",
                [PNG],
                "what brand?",
                "dakota",
                answers=["nous", "dakota", "dakota", "", "", "", "", "", "", ""],
            )
        ],
    ),
    (
        "textvqa",  # official
        {
            "question": "what?",
            "image_id": "0054c91397f2fe05",
            "image_classes": ["Bottle"],
            "flickr_original_url": "https://x/y.jpg",
            "question_id": 0,
            "answers": ["ale"] * 10,
            "set_name": "train",
        },
        [sample("0", "textvqa", ["0054c91397f2fe05.jpg"], "what?", "ale", answers=["ale"] * 10)],
    ),
    (
        "stvqa",
        {
            "file_path": "train/coco-text/COCO_train2014_000000394661.jpg",
            "file_name": "COCO_train2014_000000394661.jpg",
            "dataset": "coco-text",
            "question_id": 9,
            "question": "What is on the bus?",
            "answers": ["CROSS COUNTRY", "LINE"],
        },
        [
            sample(
                "9",
                "stvqa",
                ["train/coco-text/COCO_train2014_000000394661.jpg"],
                "What is on the bus?",
                "CROSS COUNTRY",
                answers=["CROSS COUNTRY", "LINE"],
            )
        ],
    ),
    (
        "docvqa",
        {
            "questionId": "337",
            "question": "what is the date?",
            "question_types": ["handwritten", "form"],
            "image": STORED,
            "docId": 279,
            "ucsf_document_id": "xnbl0037",
            "ucsf_document_page_no": "1",
            "answers": ["1/8/93", "January 8"],
            "data_split": "train",
        },
        [
            sample(
                "337",
                "docvqa",
                [PNG],
                "what is the date?",
                "1/8/93",
                answers=["1/8/93", "January 8"],
            )
        ],
    ),
    (
        "chartqa",  # lmms-lab
        {"type": "human_test", "question": "How many?", "answer": "14", "image": STORED},
        [sample("", "chartqa", [PNG], "How many?", "14", answers=["14"])],
    ),
    (
        "chartqa",  # HuggingFaceM4
        {"image": STORED, "query": "Is it?", "label": ["Yes"], "human_or_machine": 0},
        [sample("", "chartqa", [PNG], "Is it?", "Yes", answers=["Yes"])],
    ),
    (
        "chartqa",  # official
        {"imgname": "41699051005347.png", "query": "How many?", "label": "[2014, 2017]"},
        [
            sample(
                "",
                "chartqa",
                ["41699051005347.png"],
                "How many?",
                "[2014, 2017]",
                answers=["[2014, 2017]"],
            )
        ],
    ),
    (
        "a-okvqa",
        {
            "image": STORED,
            "question_id": "22MexNkBPpdZGX6sxbxVBH",
            "question": "What?",
            "choices": ["a cat", "a dog"],
            "correct_choice_idx": 1,
            "direct_answers": "['dog', 'dogs', 'dog']",
            "difficult_direct_answer": False,
            "rationales": ["It barks."],
        },
        [sample("22MexNkBPpdZGX6sxbxVBH", "a-okvqa", [PNG], CHOICES, "B", answers=["B"])],
    ),
    (
        "scienceqa",
        {
            "image": None,
            "question": "What?",
            "choices": ["a cat", "a dog"],
            "answer": 0,
            "hint": "It mews.\n",
            "task": "closed choice",
            "grade": "grade2",
            "subject": "natural science",
            "topic": "biology",
            "category": "animals",
            "skill": "cats",
            "lecture": "Cats mew.",
            "solution": "A cat.",
        },
        [sample("", "scienceqa", [], "It mews.\n" + CHOICES, "A", answers=["A"])],
    ),
    (
        "coco_captions",  # official, joined
        {
            "license": 5,
            "file_name": "COCO_train2014_000000057870.jpg",
            "coco_url": "http://x/y.jpg",
            "height": 480,
            "width": 640,
            "id": 57870,
            "annotations": [
                {"image_id": 57870, "id": 787980, "caption": "Tables.\n"},
                {"image_id": 57870, "id": 789366, "caption": "A long table."},
            ],
        },
        [
            sample(
                f"57870-{k}",
                "coco_captions",
                ["COCO_train2014_000000057870.jpg"],
                CAPTION,
                text,
                answers=["Tables.", "A long table."],
            )
            for k, text in enumerate(["Tables.", "A long table."])
        ],
    ),
    (
        "coco_captions",  # lmms-lab
        {
            "question_id": "COCO_val2014_000000203564.jpg",
            "image": STORED,
            "question": "Please carefully observe the image and come up with a caption.",
            "answer": ["A clock.", "A bike clock."],
            "id": 203564,
            "license": 4,
            "file_name": "COCO_val2014_000000203564.jpg",
            "coco_url": "http://x/y.jpg",
        },
        [
            sample(
                f"COCO_val2014_000000203564.jpg-{k}",
                "coco_captions",
                [PNG],
                CAPTION,
                text,
                answers=["A clock.", "A bike clock."],
            )
            for k, text in enumerate(["A clock.", "A bike clock."])
        ],
    ),
    (
        "laion",  # webdataset record
        {"__key__": "00000/000000012", "jpg": PNG, "txt": "A barn \n", "json": {"width": 4}},
        [sample("00000/000000012", "laion", [PNG], CAPTION, "A barn")],
    ),
    (
        "laion",  # without .txt
        {"__key__": "7", "webp": PNG, "json": {"caption": "A barn", "key": "000000007"}},
        [sample("7", "laion", [PNG], CAPTION, "A barn")],
    ),
    (
        "laion",  # parquet
        {"image": "00/7.jpg", "caption": "A barn", "similarity": 0.3},
        [sample("", "laion", ["00/7.jpg"], CAPTION, "A barn")],
    ),
    (
        "lnqa",
        {
            "image": STORED,
            "qa": [
                {"question": "Who?", "answer": "A man."},
                {"question": "Why?", "answer": "Fun."},
            ],
        },
        [sample("", "lnqa", [PNG], "Who?", "A man.", "Why?", "Fun.")],
    ),
    (
        "smoltalk",
        {
            "messages": [
                {"content": "Be brief.", "role": "system"},
                {"content": "Is <|image|> a token?", "role": "user"},
                {"content": "Yes.", "role": "assistant"},
            ],
            "source": "smol-constraints",
        },
        [
            {
                "images": [],
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "Is <|image|> a token?"},
                    {"role": "assistant", "content": "Yes."},
                ],
                "source": "smol-constraints",
                "id": "",
            }
        ],
    ),
    (
        "plain_text",
        {
            "text": "The <|im_end|> of\nan era.",
            "id": "<urn:uuid:0d8a309d>",
            "dump": "CC-MAIN-2013-20",
            "url": "http://x/y",
            "file_path": "s3://x/y.warc.gz",
            "language": "en",
            "score": 2.75,
            "int_score": 3,
        },
        [
            {
                "images": [],
                "messages": [],
                "text": "The <|im_end|> of\nan era.",
                "source": "",
                "id": "<urn:uuid:0d8a309d>",
            }
        ],
    ),
    (
        "jsonl",
        {"id": 7, "image": "a.png", "question": "One?", "answers": ["1", "one", "one"]},
        [sample("7", "", ["a.png"], "One?", "one", answers=["1", "one", "one"])],
    ),
    (
        "jsonl",
        {"images": ["a.png", "b.png"], "sentence": "Red.", "answer": "yes", "type": "t"},
        [sample("", "", ["a.png", "b.png"], "Is this true? Red.", "yes", kinds=["t"])],
    ),
    (
        "csv",
        {"id": "c1", "image": "a.png", "question": "One?", "answer": "", "answers": '["1", "i"]'},
        [sample("c1", "", ["a.png"], "One?", "1", answers=["1", "i"])],
    ),
    (
        "csv",
        {"id": "", "image": "", "question": "One?", "answer": "1"},
        [sample("", "", [], "One?", "1")],
    ),
]


@pytest.mark.parametrize(("schema", "row", "expected"), ROWS)
def test_rows_become_samples(schema, row, expected):
    before = repr(row)
    assert SCHEMAS[schema](row) == expected
    assert repr(row) == before


def test_every_schema_is_shown():
    assert {schema for schema, _, _ in ROWS} == set(SCHEMAS)


@pytest.mark.parametrize(("schema", "row", "expected"), ROWS)
def test_samples_are_usable_as_they_are(schema, row, expected):
    for one in SCHEMAS[schema](row):
        one = normalize_sample(one, 0)
        if "text" in one:
            continue
        shown = [p for m in messages_with_images(one) for p in m["content"]]
        assert sum(part["type"] == "image" for part in shown) == len(one["images"])


@pytest.mark.parametrize(("schema", "row", "expected"), ROWS)
def test_columns_tell_the_schema(schema, row, expected):
    # ShareGPT4V has LLaVA's columns; a question with one answer is a row of our own layout.
    told = {"sharegpt4v": "llava", "csv": "csv"}.get(schema, schema)
    if schema == "chartqa" and "question" in row:
        told = "jsonl"
    assert detect_schema(row, own="csv" if schema == "csv" else "jsonl") == told


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["URL", "TEXT"], r"\['TEXT', 'URL'\] fit no known layout.*'textvqa'"),
        ([], "no known layout"),
        (["conversations", "texts", "images"], r"fit \['llava', 'the_cauldron'\]"),
        (["text", "jpg"], "no known layout"),
        (["image", "text"], "no known layout"),
    ],
)
def test_unknown_and_ambiguous_columns_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        detect_schema(columns)


@pytest.mark.parametrize(
    "image", [STORED, PNG, "x.png", Image.new("RGB", (4, 4)), np.zeros((4, 4, 3), np.uint8)]
)
def test_kinds_of_images(image, tmp_path):
    (tmp_path / "x.png").write_bytes(PNG)
    rows = {
        "chartqa": {"question": "a", "answer": "b", "image": image},
        "the_cauldron": {"images": [image], "texts": [{"user": "a", "assistant": "b"}]},
        "lnqa": {"image": image, "qa": [{"question": "a", "answer": "b"}]},
        "jsonl": {"image": image, "question": "a", "answer": "b"},
    }
    for schema, row in rows.items():
        (one,) = SCHEMAS[schema](row)
        (found,) = ImagePlace(str(tmp_path)).place(one)["images"]
        assert load_image(found).getpixel((0, 0)) == (0, 0, 0)


def changed(schema, number=0, **fields):
    row = [row for name, row, _ in ROWS if name == schema][number]
    return schema, {**row, **fields}


def llava_turns(*values):
    sides = ["human", "gpt"] * len(values)
    return [{"from": s, "value": v} for s, v in zip(sides, values, strict=False)]


@pytest.mark.parametrize(
    ("schema_and_row", "message"),
    [
        (changed("the_cauldron", texts=[]), "'texts' must be a non-empty list"),
        (changed("the_cauldron", texts=None), "'texts' must be a non-empty list, got NoneType"),
        (changed("the_cauldron", texts=[{"user": "a"}]), "dicts with 'user' and 'assistant'"),
        (
            changed("the_cauldron", texts=[{"user": "a", "assistant": None}]),
            "answer of turn 0 must be text, got None",
        ),
        (changed("the_cauldron", images=[{"bytes": None, "path": None}]), "neither 'bytes'"),
        (changed("the_cauldron", images=[5]), "'images' must be a name"),
        (changed("finevision", formatting_ratings=[1]), r"'formatting_ratings' \[1\] for 2 turns"),
        (changed("finevision", formatting_ratings=["1", 2]), "rating of turn 0 must be a number"),
        (changed("llava", image="https://x/y.jpg"), "'000000033471': 'image' is the address"),
        (changed("llava", conversations=None), "'conversations' must be a non-empty list"),
        (changed("llava", conversations=["Hi"]), "must hold dicts, not 'Hi'"),
        (changed("llava", conversations=[{"from": "bing", "value": "a"}]), "must hold 'from'"),
        (changed("llava", conversations=llava_turns("a")), "does not end with an answer"),
        (changed("llava", conversations=llava_turns("a", " ")), "an answer is blank"),
        (changed("llava", conversations=llava_turns("a", "b")[1:]), "not begin with a question"),
        (
            changed("llava", conversations=llava_turns("<image><image>", "b")),
            "'000000033471': 2 marks <image> for 1 images",
        ),
        (changed("vqav2", image=None), "row '458752000': no 'image', and no 'data_subtype'"),
        (changed("vqav2", question=None), "row '458752000': 'question' must be text, got NoneType"),
        (changed("vqav2", answers=None, multiple_choice_answer=None), "test splits have none"),
        (changed("vqav2", answers=[{"answer": 3}]), "an answer must be text, got 3"),
        (changed("okvqa", answers=["", " "]), "row '2971475': every answer is blank"),
        (changed("textvqa", answers=None), "row '34602': no answers, got None; test splits"),
        (changed("textvqa", image=None, image_id=None), "no image in"),
        (changed("stvqa", file_path=None), "row '9': no image"),
        (changed("docvqa", answers=[]), "row '337': no answers"),
        (changed("docvqa", image={"bytes": b"", "path": None}), "neither 'bytes' nor 'path'"),
        (changed("chartqa", answer=14), "no answers, got 14"),
        (changed("a-okvqa", correct_choice_idx=None), "must be 0 to 1, got None; test splits"),
        (changed("a-okvqa", correct_choice_idx=2), "must be 0 to 1, got 2"),
        (changed("a-okvqa", choices=[1, 2]), "at most 26 texts"),
        (changed("scienceqa", answer="A"), "must be 0 to 1, got 'A'"),
        (changed("scienceqa", choices=[]), "'choices' must be a non-empty list"),
        (changed("coco_captions", annotations=[]), "row '57870': 'annotations' must be"),
        (changed("coco_captions", 1, answer=None), r"000203564\.jpg': no answers"),
        (changed("laion", jpg=None), "row '00000/000000012': no image"),
        (changed("laion", txt=" "), "row '00000/000000012': 'txt' must be text, got ' '"),
        (changed("lnqa", qa=[]), "'qa' must be"),
        (changed("lnqa", qa=[{"question": "a", "answer": None}]), "answer of turn 0"),
        (changed("lnqa", image=None), "no image"),
        (changed("smoltalk", messages=[{"role": "tool", "content": "a"}]), "one of the roles"),
        (changed("smoltalk", messages=[{"role": "user", "content": "a"}]), "end with an answer"),
        (changed("smoltalk", messages=[{"role": "user", "content": None}]), "'content' must be"),
        (changed("smoltalk", images=["a.png"]), "schema='jsonl'"),
        (changed("plain_text", text=""), "row '<urn:uuid:0d8a309d>': 'text' must be text, got ''"),
        (changed("plain_text", text=None), "'text' must be text, got NoneType"),
        (changed("jsonl", question=""), "row '7': no question"),
        (changed("jsonl", answers=[" "]), "row '7': 'answer' must be a string"),
        (changed("csv", answers="1, i"), "row 'c1': 'answers' must be a list in JSON"),
    ],
)
def test_unusable_rows_are_named(schema_and_row, message):
    schema, row = schema_and_row
    with pytest.raises(ValueError, match=message):
        SCHEMAS[schema](row)


WRONG = [None, 3, 2.5, True, "x", "", b"", [], {}, [None], [3], [[]], [{}], [{"answer": []}]]


def damaged(value):
    """The value, and every value inside it, replaced by wrong ones."""
    yield from WRONG
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from ({**value, key: wrong} for wrong in damaged(inside))
            yield {k: v for k, v in value.items() if k != key}
    elif isinstance(value, list):
        for k, inside in enumerate(value[:2]):
            yield from ([*value[:k], wrong, *value[k + 1 :]] for wrong in damaged(inside))


@pytest.mark.parametrize(("schema", "row", "expected"), ROWS)
def test_wrong_types_anywhere_give_a_sample_or_a_clear_error(schema, row, expected):
    refused = 0
    for wrong in damaged(row):
        if not isinstance(wrong, dict):
            continue
        try:
            samples = SCHEMAS[schema](wrong)
        except ValueError:
            refused += 1
            continue
        for one in samples:
            assert isinstance(one["id"], str) and isinstance(one["source"], str)
            assert all(isinstance(a, str) for a in one.get("answers", []))
            assert "text" in one or messages_with_images(one)
    assert refused > len(row)


@pytest.mark.parametrize(
    "kind", ["relevance", "visual_dependency", "image_correspondence", "formatting"]
)
def test_finevision_leaves_out_turns_that_are_rated_too_low(kind):
    row = {
        "images": [],
        "texts": [{"user": f"{k}?", "assistant": str(k)} for k in range(4)],
        "source": "s",
        **{f"{k}_ratings": [5, 5, 5, 5] for k in ("relevance", "formatting")},
        **{f"{k}_ratings": None for k in ("visual_dependency", "image_correspondence")},
        f"{kind}_ratings": [3, 2, None, 4],
    }
    read = SCHEMAS["finevision"]
    kept = [
        [m["content"] for m in one["messages"] if m["role"] == "assistant"]
        for limit in (1, 3, 4)
        for one in read(row, **{f"min_{kind}": limit})
    ]
    assert kept == [["0", "1", "2", "3"], ["0", "2", "3"], ["2", "3"]]
    row[f"{kind}_ratings"] = [1, 1, 1, 1]
    assert read(row, **{f"min_{kind}": 2}) == []


def test_llava_marks_in_later_turns_and_beside_literal_ones():
    row = {
        "id": "m",
        "image": ["a.png", "b.png"],
        "conversations": llava_turns("<image>\nThis <|image|>?", "1", "And <image>?", "2"),
    }
    (one,) = SCHEMAS["llava"](row)
    a, b = ({"type": "image", "image": name} for name in ("a.png", "b.png"))
    assert one["images"] == []
    assert [m["content"] for m in one["messages"]] == [
        [a, {"type": "text", "text": "\nThis <|image|>?"}],
        "1",
        [{"type": "text", "text": "And "}, b, {"type": "text", "text": "?"}],
        "2",
    ]
    (placed,) = [ImagePlace("folder", "z.zip").place(one)]
    assert str(placed["messages"][2]["content"][1]["image"]) == "z.zip:folder/b.png"
    (plain,) = SCHEMAS["llava"]({**row, "conversations": llava_turns("Is <|image|> it?", "1")})
    parts = messages_with_images(plain)[0]["content"]
    assert [part["type"] for part in parts] == ["image", "image", "text"]
    assert parts[2]["text"] == "Is <|image|> it?"


def test_spellings_of_marks_in_questions_stay_text():
    (one,) = SCHEMAS["chartqa"]({"image": PNG, "question": "<|image|> <image>?", "answer": "a"})
    parts = messages_with_images(one)[0]["content"]
    assert [part.get("text") for part in parts] == [None, "<|image|> <image>?"]


def test_options_of_schemas():
    _, row = changed("a-okvqa")
    (one,) = check_schema("a-okvqa", {"choices": False})(row, choices=False)
    assert one == sample(
        row["question_id"], "a-okvqa", [PNG], "What?", "dog", answers=["dog", "dogs", "dog"]
    )
    _, row = changed("scienceqa")
    (one,) = SCHEMAS["scienceqa"](row, lecture=True)
    assert one["messages"][0]["content"] == "Cats mew.\nIt mews.\n" + CHOICES
    with pytest.raises(ValueError, match=r"\['shade'\]; the schema 'lnqa' has \[\]"):
        check_schema("lnqa", {"shade": 1})
    with pytest.raises(ValueError, match="'lnqb'; known are.*'vqav2'"):
        check_schema("lnqb", {})
    with pytest.raises(ValueError, match="'direct_answers' is no list: 'dog'"):
        SCHEMAS["a-okvqa"]({**changed("a-okvqa")[1], "direct_answers": "dog"}, choices=False)
