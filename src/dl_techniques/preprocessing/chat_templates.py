"""Chat templates: the fixed text around the turns of a conversation, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dl_techniques.preprocessing.tokenizer_base import Tokenizer


@dataclass(frozen=True)
class ChatTemplate:
    """Fixed text around the turns of a conversation.

    Attributes:
        name: the template's key in `TEMPLATES`.
        system: text before and after the content of a system turn; likewise:
        user: of a user turn.
        assistant: of an assistant turn. The first one alone invites the model to answer.
        answer_lead: begins every answer, and is learned with it.
        end_token: ends an answer and is learned; None: the tokenizer's eos.
        markers: the special tokens in these texts.
        starts_with_bos: whether a conversation begins with the tokenizer's bos, if it has one.
        leading_images_first: whether images before a turn's text stand before its fixed text too.
        alternating: whether every user turn must be answered before the next one.
        start: text at the start of a conversation, behind the bos.
        default_system: content of a system turn that goes before a conversation without one.
        text_lead: stands before the content of a system or user turn that begins with text.
    """

    name: str
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer_lead: str = ""
    end_token: str | None = None
    markers: tuple[str, ...] = ()
    starts_with_bos: bool = False
    leading_images_first: bool = False
    alternating: bool = False
    start: str = ""
    default_system: str | None = None
    text_lead: str = ""

    def end_id(self, tokenizer: Tokenizer) -> int:
        """Id of the token that ends an answer.

        Raises:
            ValueError: the tokenizer lacks a special token of this template.
        """
        special = tokenizer.special_tokens
        missing = [token for token in self.markers if token not in special]
        if missing:
            raise ValueError(
                f"the {self.name} template needs the special tokens {missing}; add them with "
                f"tokenizer.add_special_tokens({missing}) and give the model rows for them"
            )
        if self.end_token is not None:
            return special[self.end_token]
        if tokenizer.eos_id is None:
            raise ValueError(
                f"the {self.name} template ends answers with the tokenizer's eos, and this "
                "tokenizer has none; name its eos_token when you load it"
            )
        return tokenizer.eos_id

    def stop_ids(self, tokenizer: Tokenizer) -> list[int]:
        """Ids at which an answer ends: the template's end token and the tokenizer's eos."""
        ids = [self.end_id(tokenizer), tokenizer.eos_id]
        return list(dict.fromkeys(i for i in ids if i is not None))


CHATML = ChatTemplate(
    name="chatml",
    system=("<|im_start|>system\n", "<|im_end|>\n"),
    user=("<|im_start|>user\n", "<|im_end|>\n"),
    assistant=("<|im_start|>assistant\n", "\n"),
    end_token="<|im_end|>",
    markers=("<|im_start|>", "<|im_end|>"),
)

SMOLLM2 = replace(
    CHATML,
    name="smollm2",
    default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
)

QWEN2 = replace(
    CHATML,
    name="qwen2",
    default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
)

NVLM = replace(
    CHATML,
    name="nvlm",
    default_system="Follow the user's instruction and answer questions.",
)

SMOLVLM = ChatTemplate(
    name="smolvlm",
    system=("System:", "<end_of_utterance>\n"),
    user=("User:", "<end_of_utterance>\n"),
    assistant=("Assistant:", "\n"),
    answer_lead=" ",
    end_token="<end_of_utterance>",
    markers=("<|im_start|>", "<end_of_utterance>"),
    start="<|im_start|>",
    text_lead=" ",
)

IDEFICS3 = replace(
    SMOLVLM,
    name="idefics3",
    markers=("<|begin_of_text|>", "<end_of_utterance>"),
    start="<|begin_of_text|>",
)

QUESTION_ANSWER = ChatTemplate(
    name="question_answer",
    system=("", "\n"),
    user=("Question: ", " Answer:"),
    assistant=("", ""),
    answer_lead=" ",
    starts_with_bos=True,
    leading_images_first=True,
    alternating=True,
)

# The conversations of nanochat, whose tool calls (python, output) have tokens but no turns here.
GHOSTVIS = ChatTemplate(
    name="ghostvis",
    system=("<|user_start|>", "<|user_end|>"),
    user=("<|user_start|>", "<|user_end|>"),
    assistant=("<|assistant_start|>", ""),
    end_token="<|assistant_end|>",
    markers=(
        "<|bos|>",
        "<|user_start|>",
        "<|user_end|>",
        "<|assistant_start|>",
        "<|assistant_end|>",
        "<|python_start|>",
        "<|python_end|>",
        "<|output_start|>",
        "<|output_end|>",
    ),
    start="<|bos|>",
)

# LLaVA-1.5's, which Vicuna-1.5 was trained with.
VICUNA = ChatTemplate(
    name="vicuna",
    system=("", " "),
    user=("USER: ", " "),
    assistant=("ASSISTANT:", ""),
    answer_lead=" ",
    starts_with_bos=True,
    default_system=(
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions."
    ),
)

TEMPLATES = {
    template.name: template
    for template in (
        *(CHATML, QUESTION_ANSWER, SMOLLM2, QWEN2, NVLM),
        *(SMOLVLM, IDEFICS3, GHOSTVIS, VICUNA),
    )
}
