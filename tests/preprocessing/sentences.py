"""Texts to compare tokenizers on: made by hand for their traps, and taken from the real data."""

import json
import random
import unicodedata

SCRIPTS = [
    "What color is the bear?",
    "Der Bär läuft über die Straße; Größe: 12,5 m².",
    "Où est l'élève naïf ? « Là-bas », dit-il… œuvre, ÇA VA",
    "¿Dónde está el niño? ¡Mañana! Año 1999",
    "Příliš žluťoučký kůň úpěl ďábelské ódy",
    "Tiếng Việt: một hai ba, được không? ấy ộ ữ",
    "Где находится медведь? Ёлка, йод, объезд",
    "Πού είναι η αρκούδα; Ἀθῆναι ΰ ΐ ς Σ",
    "איפה הדוב? שָׁלוֹם עֲלֵיכֶם",
    "أين الدب؟ السَّلَامُ عَلَيْكُمْ ١٢٣",
    "भालू कहाँ है? क्षत्रिय ज़ क़ १२३",
    "ভালুক কোথায়? ড় ঢ় য়",
    "கரடி எங்கே? கொ கோ",
    "หมีอยู่ที่ไหน น้ำ กำ ๑๒๓",
    "熊是什么颜色的？漢字、仮名。１２３",
    "熊は何色ですか？ がぎぐ パピプ ﾊﾟ ｶﾞ",
    "곰은 무슨 색입니까? 각 값 한글",
    "დათვი სად არის? ქართული Ⴀ",
    "Արջը որտե՞ղ է",
    "ድብ የት ነው? ፩፪፫",
    "İstanbul ılık IĞDIR ﬁn ﬂow ﬃ Ǆ ǅ ẞ",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛 ℝ ℃ Å Ω ½ ² ⅷ №",
]
EMOJI = [
    "😀",
    "a 🐻 and 🐻\u200d❄\ufe0f",
    "👨\u200d👩\u200d👧\u200d👦 family",
    "👍🏽👍🏿 👩🏾\u200d🚀",
    "🇩🇪🇯🇵 flags 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "1️⃣ 2️⃣ #️⃣ ©️ ™ ❤️\u200d🔥",
    "text\ufe0e style ☎\ufe0e ☎\ufe0f",
    "🫠🫡🪿🫎 new ones",
]
CODE = [
    "def f(x):\n    return x ** 2  # square\n\n\nclass A:\n\tpass",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] << 2; }",
    'print("Hello,\\n\\tworld!")\r\n',
    "SELECT * FROM t WHERE a='it''s' AND b<>3;",
    "<html><body class='x'>&amp;&nbsp;</body></html>",
    "https://example.org/a_b-c?d=e&f=%20#g me@example.org",
    "x^2+y^2=z^2, \\frac{a}{b} $\\alpha$ ≤ ∑ ∞ ∂",
    "C:\\Users\\me\\file.txt ../..//a.b.c ~/.bashrc",
    "camelCaseWord snake_case_word kebab-case SCREAMING_CASE",
    '{"a": [1, 2.5e-10, null], "b": {"c": true}}',
    "I'm you're he'll they've I'd it's don't I'M YOU'RE IT'S '' 's'",
    "''quotes'' “curly” ‘single’ „low“ ‹a› -- – — ... …",
]
BLANKS = [
    "",
    " ",
    "  ",
    "       ",
    "\t",
    "\n",
    "\n\n\n",
    "\r\n\r\n",
    " \n \n ",
    "\t\t a\t b",
    " leading",
    "   three leading",
    "trailing ",
    "trailing   ",
    "a  b   c    d     e",
    "a\n b\n  c\n\n\n   d",
    "line one\r\nline two\rline three\n",
    "x" + " " * 33 + "y" + "\n" * 9 + "z",
    "\u00a0no\u00a0break\u2003em\u2009thin\u3000wide\u200bzero\u2060",
    "para\u2028graph\u2029s\x85next\x0bvertical\x0cform",
    "\u2581 blank mark \u2581\u2581",
    "\u2581",
    "a\u2581b",
]
SPELLINGS = [
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|>",
    "a<|endoftext|>b",
    " <|im_end|> ",
    "<|startoftext|>a cat<|endoftext|>",
    "<|STARTOFTEXT|>",
    "<s>[INST] hi [/INST]</s>",
    "<s>",
    "</s>",
    "<unk>",
    "<pad> <unk> <mask> [CLS] [SEP] ▁<s>",
    "<0x41>",
    "<0x0A><0xE2><0x96><0x81>",
    "a <0x41> b<0xFF>",
    "<tool_call>\n{}\n</tool_call>",
    "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>",
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<image> <|image|> <repo_name>x<file_sep>",
    "<fake_token_around_image><row_1_col_1><global-img>",
    "<|im_start", "|im_end|>", "<|", "<<s>>", "</w>", "a</w> b</w>",
]  # fmt: skip
NUMBERS = [
    "0",
    "12",
    "1234567890",
    "3.14159",
    "1,000,000.00",
    "-5",
    "+49 (0)30 1234-5678",
    "2026-11-21T03:28:41Z",
    "50%",
    "$19.99 €5 £7 ¥100",
    "0x1F 0b101 1e-9",
    "a1b2c3 v2.0.1 B-52",
    "IV XII 1st 2nd 3rd 100th",
    " 7 77 777 7777 77777 ",
]
CONTROLS = ["\x00", "a\x00b", "\x01\x02\x03", "\x04", "\x1b[31mred\x1b[0m", "\x7f", "\x80\x9f"]
CONTROLS += [
    "bell\x07",
    "\ufeffbom",
    "\ufffd",
    "\ufffe\uffff",
    "\ue000 \uf8ff",
    "\u2585",
    "a\u00adb",
]
CONTROLS += ["\u202eright to left\u202c", "\u0301", "\u0301\u0323a", "\ufdd0", "\U0010ffff"]
CONTROLS += ["\u200e\u200f", "\u061c", "\U000e0001", "\x16\x17", "a\x08b"]
COMBINING = [
    "é e\u0301 ê\u0323 e\u0323\u0302",
    "a\u0308o\u0308u\u0308 \u212b \u2126 \u1e9b\u0323",
    "q\u0307\u0323 q\u0323\u0307",
    "Z\u0351\u036b\u0343\u036a\u0302a\u0335l\u0336g\u0337o\u0338",
    "\u1100\u1161\u11a8 \uac00\u11a8",
    "\u0344 \u0340 \u0958 \u2adc \ufb1d",
]
LONG = [
    "a" * 500,
    "ab" * 300,
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 3,
    "pneumonoultramicroscopicsilicovolcanoconiosis" * 5,
    "漢" * 200,
    "1" * 300,
    "!" * 200,
    "=" * 77 + "\n" + "-" * 77,
    "😀" * 60,
    "xyz_" * 150,
    "The " * 100,
    "aaaab" * 60,
]


def handmade() -> list[str]:
    """At least 200 texts, each once."""
    texts = SCRIPTS + EMOJI + CODE + BLANKS + SPELLINGS + NUMBERS + CONTROLS + COMBINING + LONG
    composed = [unicodedata.normalize("NFC", text) for text in SCRIPTS + COMBINING]
    apart = [unicodedata.normalize("NFD", text) for text in SCRIPTS + COMBINING + EMOJI]
    glued = [f" {a}{b}\n" for a, b in zip(SCRIPTS, CODE * 2, strict=False)]
    loud = [text.upper() for text in SCRIPTS]
    return list(dict.fromkeys(texts + composed + apart + glued + loud))


def from_data(folder, count=1000, seed=0) -> list[str]:
    """Questions, answers, captions and lines of the real data, each once."""
    choose = random.Random(seed)
    texts = set()
    for path in sorted(folder.glob("*/*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for row in choose.sample(rows, min(200, len(rows))):
            texts.update(str(row[key]) for key in ("question", "answer", "sentence") if key in row)
            texts.update(row.get("captions", []) + row.get("answers", []))
    for path in sorted(folder.glob("text/*.txt")):
        lines = path.read_text(encoding="utf-8").split("\n")
        starts = choose.sample(range(len(lines) - 4), 200)
        texts.update("\n".join(lines[start : start + choose.randint(1, 4)]) for start in starts)
    return choose.sample(sorted(texts), count)
