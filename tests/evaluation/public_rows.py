"""One row of each public benchmark, with the column names of its data set, and what it asks."""

import io

from PIL import Image


def png(width=8, height=6, colour=(200, 30, 30)):
    """Return an encoded picture."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


PICTURE = {"bytes": png(), "path": None}
TEN = [{"answer": text, "answer_confidence": "yes", "answer_id": k + 1}
       for k, text in enumerate(["red"] * 8 + ["Red", "orange"])]  # fmt: skip
PHRASE = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."

# Benchmark -> (row, prompt, answer that scores 1, answer that scores 0).
ROWS = {
    "vqav2": (
        {"question_type": "what", "multiple_choice_answer": "red", "answers": TEN, "image_id": 9,
         "answer_type": "other", "question_id": 9001, "question": "What colour?", "image": PICTURE},
        "What colour?" + PHRASE, "The red", "blue",
    ),
    "textvqa": (
        {"image_id": "a1", "question_id": 7, "question": "Which brand?", "image": PICTURE,
         "image_classes": ["phone"], "flickr_original_url": "", "answers": ["nokia"] * 10,
         "set_name": "val", "ocr_tokens": ["NOKIA"]},
        "Which brand?" + PHRASE, "Nokia.", "apple",
    ),
    "chartqa": (
        {"type": "human_test", "question": "How much?", "answer": "100", "image": PICTURE},
        "How much?\nAnswer the question with a single word.", "104", "106",
    ),
    "docvqa": (
        {"questionId": "337", "question": "Which date?", "question_types": ["layout", "form"],
         "image": PICTURE, "docId": 12, "ucsf_document_id": "x", "ucsf_document_page_no": "3",
         "answers": ["12/05/2020"], "data_split": "val"},
        "Which date?" + PHRASE, "12/05/2020", "in May",
    ),
    "infographicvqa": (
        {"questionId": "98", "question": "How many?", "answers": ["3", "three"], "image": PICTURE,
         "answer_type": ["single span"], "image_url": "http://x/1.png", "data_split": ""},
        "How many?" + PHRASE, "Three", "four",
    ),
    "gqa": (
        {"id": "20", "imageId": "n1", "question": "Is it?", "answer": "yes", "fullAnswer": "Yes.",
         "isBalanced": True, "types": {"structural": "verify", "semantic": "attr"}},
        "Is it?" + PHRASE, "Yes.", "no",
    ),
    "pope": (
        {"id": "0", "question_id": "1", "question": "Is there a car?", "answer": "no",
         "image_source": "COCO_val2014_1", "image": PICTURE, "category": "popular"},
        "Is there a car?" + PHRASE, "No, there is not.", "Yes",
    ),
    "mme": (
        {"question_id": "code/1.png", "image": PICTURE, "answer": "Yes", "category": "OCR",
         "question": "Is it print? Please answer yes or no."},
        "Is it print?" + PHRASE, "Yes", "No",
    ),
    "mmstar": (
        {"index": 3, "question": "Which?\nOptions: A: cat, B: dog", "image": PICTURE, "answer": "B",
         "category": "math", "l2_category": "geometry", "meta_info": {"source": "x", "split": "y"}},
        "Which?\nOptions: A: cat, B: dog" + LETTER, "B: dog", "The dog",
    ),
    "mmmu": (
        {"id": "validation_Art_Theory_3", "question": "<image 1> or <image 2>?", "answer": "B",
         "options": "['cat', 'dog', 'bird']", "question_type": "multiple-choice",
         "image_1": PICTURE, "image_2": PICTURE, "image_3": None, "subfield": "x"},
        "<image 1> or <image 2>?\nA. cat\nB. dog\nC. bird\n" + LETTER, "(B)", "(A)",
    ),
    "mmbench": (
        {"index": 1000042, "question": "Which?", "hint": "Look.", "answer": "B", "A": "cat",
         "B": "dog", "C": "nan", "D": None, "category": "ocr", "image": PICTURE, "source": "x",
         "L2-category": "y", "comment": "nan", "split": "dev"},
        "Look.\nWhich?\nA. cat\nB. dog" + LETTER, "B", "a cat",
    ),
    "seedbench": (
        {"answer": "C", "choice_a": "1", "choice_b": "2", "choice_c": "3", "choice_d": "4",
         "data_id": "7", "data_type": "image", "question": "How many?", "question_id": "101669",
         "question_type_id": 5, "image": [PICTURE, PICTURE], "segment": None},
        "How many?\nA. 1\nB. 2\nC. 3\nD. 4" + LETTER, "C.", "D",
    ),
    "mathvista": (
        {"pid": "2", "question": "Sum?", "image": "images/2.jpg", "decoded_image": PICTURE,
         "choices": None, "unit": None, "precision": 1.0, "answer": "1.2", "question_type":
         "free_form", "answer_type": "float", "metadata": {"task": "figure"},
         "query": "Hint: give one decimal.\nQuestion: Sum?"},
        "Hint: give one decimal.\nQuestion: Sum?", "The answer is 1.23", "12",
    ),
    "ai2d": (
        {"question": "Which?", "options": ["cat", "dog"], "answer": "1", "image": PICTURE},
        "Which?\nA. cat\nB. dog" + LETTER, "b", "A",
    ),
    "scienceqa": (
        {"image": PICTURE, "question": "Which?", "choices": ["cat", "dog"], "answer": 0,
         "hint": "It mews.", "task": "x", "subject": "natural science", "lecture": "", "skill": ""},
        "Context: It mews.\nWhich?\nA. cat\nB. dog" + LETTER, "A. cat", "dog",
    ),
    "a-okvqa": (
        {"image": PICTURE, "question_id": "q1", "question": "Which?", "choices": ["cat", "dog"],
         "correct_choice_idx": 1, "direct_answers": "['dog']", "rationales": ["x"]},
        "Which?\nA. cat\nB. dog" + LETTER, "dog", "cat",
    ),
    "ocrbench": (
        {"dataset": "IIIT5K", "question": "what is written?", "question_type": "Regular Text",
         "answer": ["CENTRE"], "image": PICTURE},
        "what is written?", "It says centre.", "It says center.",
    ),
    "coco_captions": (
        {"question_id": "000000000139.jpg", "image": PICTURE, "question": "Describe.", "id": 139,
         "answer": ["A cat on a mat.", "A cat."], "coco_url": "", "license": 1},
        "Provide a one-sentence caption for the provided image.", "a cat on a mat", "two dogs",
    ),
    "flickr30k": (
        {"image": PICTURE, "caption": ["A cat on a mat.", "A cat."], "sentids": ["0"],
         "img_id": "0", "filename": "1.jpg"},
        "Provide a one-sentence caption for the provided image.", "a cat on a mat", "two dogs",
    ),
    "nlvr2": (
        {"question_id": "dev-850-0-0", "question": "Both are red.", "answer": "True",
         "left_image": PICTURE, "right_image": PICTURE},
        "Is this true? Both are red." + PHRASE, "Yes, they are.", "False",
    ),
    "easy_vqa": (
        {"id": "e0", "image": "0.png", "question": "what shape?", "answer": "circle",
         "type": "open"},
        "what shape?", "Circle", "square",
    ),
    "coco_yesno": (
        {"id": "c0", "image": "0.png", "question": "Is it?", "answer": "no", "type": "yesno"},
        "Is it?", "No.", "yes",
    ),
    "daquar": (
        {"id": "d0", "image": "0.png", "question": "what?", "answer": "desk, chair",
         "raw_question": "", "multi": True},
        "what?", "desk, chair", "desk",
    ),
    "nlvr1": (
        {"id": "n0", "images": ["0.png", "1.png"], "sentence": "A box.", "label": "true",
         "answer": "yes"},
        "Is this true? A box.", "true", "no",
    ),
    "sroie": (
        {"id": "s0", "image": "0.png", "question": "The total?", "answer": "9.00", "type": "total"},
        "The total?", "9.00", "12",
    ),
    "flickr8k": (
        {"id": "f0", "image": "0.png", "captions": ["A cat on a mat .", "A cat ."]},
        "Describe the picture.", "a cat on a mat", "two dogs",
    ),
    "chartqa_subset": (
        {"id": "h0", "image": "0.png", "question": "How much?", "answer": "100"},
        "How much?", "95", "94",
    ),
    "cifar10": (
        {"id": "i0", "image": "0.png", "question": "What is it?", "answer": "cat"},
        "What is it?", "Cat", "dog",
    ),
}  # fmt: skip

BOX_ROW = {
    "question_id": "469306", "image": {"bytes": png(100, 50), "path": None},
    "question": "Describe.", "answer": ["the left cup", "cup on left"], "file_name": "x.jpg",
    "segmentation": [1.0], "bbox": [0.0, 10.0, 50.0, 20.0], "iscrowd": 0,
}  # fmt: skip
BOX_REQUEST = (
    "Bounding box coordinates are specified in the format (top-left x, top-left y, bottom-right x, "
    "bottom-right y). All values are floating point numbers bounded between 0 and 1. Please "
    "provide the bounding box coordinate of the region this sentence describes: the left cup"
)
for name in ("refcoco", "refcoco+", "refcocog"):
    ROWS[name] = (BOX_ROW, BOX_REQUEST, "[0.0, 0.2, 0.5, 0.6]", "[0.5, 0.2, 1.0, 0.6]")
