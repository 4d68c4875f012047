"""What of OpenAI's chat completions is understood; everything else is refused by name."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from dl_techniques.generation.rolling_batch import MOST_TOP_LOGPROBS
from dl_techniques.generation.sampling import Sampler
from dl_techniques.serving.failures import RefusedError
from dl_techniques.serving.images import image_of_data_uri
from dl_techniques.serving.settings import ServerSettings


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values):
        """Leave null out: clients send it for what they do not set, as servers do in messages."""
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None}


class TextPart(_Strict):
    """A text in a message."""

    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    """Where an image is: in the URL itself."""

    url: str = Field(description="A data URI: data:image/png;base64,...")
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Strict):
    """An image in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


def _kind(part) -> str:
    kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    return f"a part of type {kind}"


Part = Annotated[
    Annotated[TextPart, Tag("a part of type text")]
    | Annotated[ImagePart, Tag("a part of type image_url")],
    Discriminator(
        _kind,
        custom_error_type="part",
        custom_error_message="Input should be a part of type 'text' or 'image_url'",
    ),
]


class Message(_Strict):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None


# What clients send that have no tools.
Nothing = Annotated[dict | list, Field(max_length=0)]


class StreamOptions(_Strict):
    """What a stream has beside the answer."""

    include_usage: bool = False


class ResponseFormat(_Strict):
    """The form of an answer: plain text."""

    type: Literal["text"]


class Conversation(_Strict):
    """Messages in order."""

    messages: list[Message] = Field(min_length=1)

    def conversation(self, settings: ServerSettings) -> list[dict[str, Any]]:
        """Return the messages as `generate` takes them.

        Raises:
            RefusedError: for a bad image or too many of them.
        """
        self._check_images(settings.max_images)
        return [
            {
                "role": "system" if message.role == "developer" else message.role,
                "content": _content(message.content, settings.max_pixels),
            }
            for message in self.messages
        ]

    def _check_images(self, most):
        parts = [part for m in self.messages if isinstance(m.content, list) for part in m.content]
        images = sum(isinstance(part, ImagePart) for part in parts)
        if images > most:
            raise RefusedError(
                400, f"{images} images are more than the {most} allowed.", "too_many_images"
            )


class ChatCompletionRequest(Conversation):
    """A conversation to answer.

    `top_k`, `min_p`, `repetition_penalty` and `ignore_eos` are not OpenAI's; vLLM has them too.
    """

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, description="0 and -1: all.")
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    n: int = Field(1, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP_LOGPROBS)
    ignore_eos: bool = False
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    presence_penalty: float | None = Field(None, ge=0, le=0)
    response_format: ResponseFormat | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] = False
    logit_bias: Nothing | None = None
    tools: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None

    @property
    def sampler(self) -> Sampler:
        """How tokens are chosen."""
        return Sampler(
            self.repetition_penalty, self.temperature, max(0, self.top_k), self.top_p, self.min_p
        )

    @property
    def most_tokens(self) -> int | None:
        """The longest answer, under either of its names."""
        return self.max_completion_tokens or self.max_tokens

    def stop_strings(self) -> tuple[str, ...]:
        """Return the stop strings.

        Raises:
            RefusedError: for too many or an empty one.
        """
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stop) > 4 or not all(stop):
            message = "stop must be at most 4 texts, none empty."
            raise RefusedError(400, message, "invalid_value", "stop")
        return tuple(stop)


def _content(content, max_pixels):
    if isinstance(content, str):
        return content
    return [
        {"type": "text", "text": part.text}
        if isinstance(part, TextPart)
        else {"type": "image", "image": image_of_data_uri(part.image_url.url, max_pixels)}
        for part in content
    ]
