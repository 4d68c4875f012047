"""Rows of every public schema, and by eye what a model reads and learns of them.

Each entry is (schema, row, texts). The texts are those of the row's documents in the ChatML
template; `golden_text` explains their signs.
"""

# Nothing here opens a picture.
PICTURE = {"bytes": b"a picture", "path": "x.png"}


def rated(answers):
    return [
        {"answer": answer, "answer_confidence": "yes", "answer_id": number}
        for number, answer in enumerate(answers, start=1)
    ]


GOLDEN_ROWS = [
    (
        "the_cauldron",
        {
            "images": [PICTURE],
            "texts": [
                {"user": "How many?", "assistant": "\n2", "source": "VQAv2"},
                {"user": "What?\n", "assistant": "Cats.\n", "source": "VQAv2"},
            ],
        },
        [
            "<|im_start|>user\n[image]How many?<|im_end|>\n"
            "<|im_start|>assistant\n«\n2<|im_end|>»\n"
            "<|im_start|>user\nWhat?\n<|im_end|>\n"
            "<|im_start|>assistant\n«Cats.\n<|im_end|>»\n"
        ],
    ),
    (
        "finevision",
        {
            "images": [PICTURE, {"bytes": None, "path": "b.png"}],
            "texts": [
                {"user": "Which <|image|> is red?", "assistant": "The <|image|> on the left."},
                {"user": "Sure?", "assistant": "Oui, à côté."},
            ],
            "source": "aokvqa",
            "relevance_ratings": [5, None],
            "relevance_min": 5,
            "visual_dependency_ratings": None,
            "visual_dependency_min": None,
            "image_correspondence_ratings": [4, 4],
            "image_correspondence_min": 4,
            "formatting_ratings": [1, 1],
            "formatting_min": 1,
        },
        [
            "<|im_start|>user\n[image][image]Which \\<|image|> is red?<|im_end|>\n"
            "<|im_start|>assistant\n«The \\<|image|> on the left.<|im_end|>»\n"
            "<|im_start|>user\nSure?<|im_end|>\n"
            "<|im_start|>assistant\n«Oui, à côté.<|im_end|>»\n"
        ],
    ),
    (
        "llava",
        {
            "id": "000000033471",
            "image": "coco/train2017/000000033471.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat colour is the bus?"},
                {"from": "gpt", "value": "White, says <image>."},
                {"from": "human", "value": "Why?"},
                {"from": "gpt", "value": "It is clean."},
            ],
        },
        [
            "<|im_start|>user\n[image]\nWhat colour is the bus?<|im_end|>\n"
            "<|im_start|>assistant\n«White, says \\<image>.<|im_end|>»\n"
            "<|im_start|>user\nWhy?<|im_end|>\n"
            "<|im_start|>assistant\n«It is clean.<|im_end|>»\n"
        ],
    ),
    (
        "llava",  # several images, one in a later turn
        {
            "id": "m",
            "image": ["a.png", "b.png"],
            "conversations": [
                {"from": "system", "value": "Compare."},
                {"from": "human", "value": "What is <image>?"},
                {"from": "gpt", "value": "A."},
                {"from": "human", "value": "<image>\nAnd this?"},
                {"from": "gpt", "value": "B."},
            ],
        },
        [
            "<|im_start|>system\nCompare.<|im_end|>\n"
            "<|im_start|>user\nWhat is [image]?<|im_end|>\n"
            "<|im_start|>assistant\n«A.<|im_end|>»\n"
            "<|im_start|>user\n[image]\nAnd this?<|im_end|>\n"
            "<|im_start|>assistant\n«B.<|im_end|>»\n"
        ],
    ),
    (
        "sharegpt4v",
        {
            "id": "sa_1",
            "image": "sam/images/sa_1.jpg",
            "conversations": [
                {"from": "human", "value": "Describe it.\n<image>"},
                {"from": "gpt", "value": "A barn.\n\nIt is red."},
            ],
        },
        [
            "<|im_start|>user\nDescribe it.\n[image]<|im_end|>\n"
            "<|im_start|>assistant\n«A barn.\n\nIt is red.<|im_end|>»\n"
        ],
    ),
    (
        "vqav2",
        {
            "question_type": "what is this",
            "multiple_choice_answer": "net",
            "answers": rated(["net"] * 4 + ["mesh"] * 5 + ["no"]),
            "image_id": 458752,
            "answer_type": "other",
            "question_id": 458752000,
            "question": "What is this?",
            "image": PICTURE,
        },
        [
            "<|im_start|>user\n[image]What is this?<|im_end|>\n"
            "<|im_start|>assistant\n«net<|im_end|>»\n"
        ],
    ),
    (
        "okvqa",
        {
            "question_id": "2971475",
            "image": PICTURE,
            "question": "What sport?",
            "answers": ["race"] * 2 + ["motocross"] * 6 + ["ride"] * 2,
            "question_type": "eight",
            "answer_type": "other",
        },
        [
            "<|im_start|>user\n[image]What sport?<|im_end|>\n"
            "<|im_start|>assistant\n«motocross<|im_end|>»\n"
        ],
    ),
    (
        "textvqa",
        {
            "image_id": "003a8ae2ef43b901",
            "question_id": 34602,
            "question": "what brand?",
            "question_tokens": ["what", "brand"],
            "image": PICTURE,
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
            "<|im_start|>user\n[image]what brand?<|im_end|>\n"
            "<|im_start|>assistant\n«dakota<|im_end|>»\n"
        ],
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
            "<|im_start|>user\n[image]What is on the bus?<|im_end|>\n"
            "<|im_start|>assistant\n«CROSS COUNTRY<|im_end|>»\n"
        ],
    ),
    (
        "docvqa",
        {
            "questionId": "337",
            "question": "what is the date?",
            "question_types": ["handwritten", "form"],
            "image": PICTURE,
            "docId": 279,
            "ucsf_document_id": "xnbl0037",
            "ucsf_document_page_no": "1",
            "answers": ["1/8/93", "January 8"],
            "data_split": "train",
        },
        [
            "<|im_start|>user\n[image]what is the date?<|im_end|>\n"
            "<|im_start|>assistant\n«1/8/93<|im_end|>»\n"
        ],
    ),
    (
        "chartqa",
        {"image": PICTURE, "query": "Is it less?", "label": ["Yes"], "human_or_machine": 0},
        [
            "<|im_start|>user\n[image]Is it less?<|im_end|>\n"
            "<|im_start|>assistant\n«Yes<|im_end|>»\n"
        ],
    ),
    (
        "a-okvqa",
        {
            "image": PICTURE,
            "question_id": "22MexNkBPpdZGX6sxbxVBH",
            "question": "What barks?",
            "choices": ["a cat", "a dog"],
            "correct_choice_idx": 1,
            "direct_answers": "['dog', 'dogs', 'dog']",
            "difficult_direct_answer": False,
            "rationales": ["It barks.", "Dogs do.", "Ears."],
        },
        [
            "<|im_start|>user\n[image]What barks?\nA. a cat\nB. a dog\n"
            "Answer with the letter of the right choice.<|im_end|>\n"
            "<|im_start|>assistant\n«B<|im_end|>»\n"
        ],
    ),
    (
        "scienceqa",
        {
            "image": PICTURE,
            "question": "What mews?",
            "choices": ["a cat", "a dog"],
            "answer": 0,
            "hint": "Look at the ears.\n",
            "task": "closed choice",
            "grade": "grade2",
            "subject": "natural science",
            "topic": "biology",
            "category": "animals",
            "skill": "cats",
            "lecture": "Cats mew.",
            "solution": "A cat.",
        },
        [
            "<|im_start|>user\n[image]Look at the ears.\nWhat mews?\nA. a cat\nB. a dog\n"
            "Answer with the letter of the right choice.<|im_end|>\n"
            "<|im_start|>assistant\n«A<|im_end|>»\n"
        ],
    ),
    (
        "coco_captions",
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
            "<|im_start|>user\n[image]\nDescribe this image.<|im_end|>\n"
            "<|im_start|>assistant\n«Tables.<|im_end|>»\n",
            "<|im_start|>user\n[image]\nDescribe this image.<|im_end|>\n"
            "<|im_start|>assistant\n«A long table.<|im_end|>»\n",
        ],
    ),
    (
        "laion",
        {"__key__": "00000/12", "jpg": b"a picture", "txt": "A barn \n", "json": {"width": 4}},
        [
            "<|im_start|>user\n[image]\nDescribe this image.<|im_end|>\n"
            "<|im_start|>assistant\n«A barn<|im_end|>»\n"
        ],
    ),
    (
        "lnqa",
        {
            "image": PICTURE,
            "qa": [
                {"question": "Who?", "answer": "A man."},
                {"question": "Why?", "answer": "For fun."},
            ],
        },
        [
            "<|im_start|>user\n[image]Who?<|im_end|>\n"
            "<|im_start|>assistant\n«A man.<|im_end|>»\n"
            "<|im_start|>user\nWhy?<|im_end|>\n"
            "<|im_start|>assistant\n«For fun.<|im_end|>»\n"
        ],
    ),
    (
        "smoltalk",
        {
            "messages": [
                {"content": "Be brief.", "role": "system"},
                {"content": "Is <|im_end|> a token?", "role": "user"},
                {"content": "Yes: <|im_end|>\nis.", "role": "assistant"},
            ],
            "source": "smol-constraints",
        },
        [
            "<|im_start|>system\nBe brief.<|im_end|>\n"
            "<|im_start|>user\nIs \\<|im_end|> a token?<|im_end|>\n"
            "<|im_start|>assistant\n«Yes: \\<|im_end|>\nis.<|im_end|>»\n"
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
        ["T«he \\<|im_end|> of\nan era.<|endoftext|>»"],
    ),
    (
        "jsonl",
        {"id": 7, "image": "a.png", "question": "One?", "answers": ["1", "one", "one"]},
        ["<|im_start|>user\n[image]One?<|im_end|>\n<|im_start|>assistant\n«one<|im_end|>»\n"],
    ),
    (
        "jsonl",  # messages, with the image's place
        {
            "images": ["a.png"],
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "Look: <|image|>. Nice?"},
                {"role": "assistant", "content": [{"type": "text", "text": "Very."}]},
                {"role": "user", "content": "Bye."},
                {"role": "assistant", "content": " Bye!"},
            ],
        },
        [
            "<|im_start|>system\nBe kind.<|im_end|>\n"
            "<|im_start|>user\nLook: [image]. Nice?<|im_end|>\n"
            "<|im_start|>assistant\n«Very.<|im_end|>»\n"
            "<|im_start|>user\nBye.<|im_end|>\n"
            "<|im_start|>assistant\n« Bye!<|im_end|>»\n"
        ],
    ),
    (
        "csv",
        {"id": "c1", "image": "", "question": "One?", "answer": "", "answers": '["1", "i"]'},
        ["<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n«1<|im_end|>»\n"],
    ),
]
