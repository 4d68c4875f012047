"""VQADataProcessor: images and texts to model inputs, and samples to data sets."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dl_techniques.datasets.augmentation import Augmentation
from dl_techniques.datasets.batches import pad_tokens
from dl_techniques.datasets.readers import read_jsonl
from dl_techniques.datasets.rows import IGNORE_INDEX, RowEncoder, messages_with_images
from dl_techniques.datasets.samples import normalize_sample
from dl_techniques.datasets.vqa_batches import VQADataset
from dl_techniques.preprocessing.chat_template import (
    TEMPLATES,
    ChatTemplate,
    EncodedConversation,
    encode_conversation,
)
from dl_techniques.preprocessing.image_processors import image_processor_from_config
from dl_techniques.preprocessing.images import BaseImageProcessor, ImageProcessor, image_size_of
from dl_techniques.preprocessing.tiling import Layout
from dl_techniques.preprocessing.tokenizer import CharacterTokenizer, Tokenizer, load_tokenizer

CONFIG_FILE = "preprocessor_config.json"
SAMPLE_FOLDER = Path(__file__).parent / "cauldron_sample"


class VQADataProcessor:
    """Prepares images, questions and answers for a vision-language model.

    Args:
        image_size: side of the square images in pixels; unused with `image_processor`.
        max_text_length: the longest row in tokens, image placeholders included.
        vocab_size: number of ids of the default tokenizer. With a `tokenizer`, this and the next
            three must be left alone or agree with it.
        pad_token_id: the id of padding; with a `tokenizer` that has none, any id will do.
        bos_token_id: the id that starts a document.
        eos_token_id: the id that ends an answer.
        tokenizer: default: a `CharacterTokenizer`, for demonstrations.
        template: a `ChatTemplate` or a name in `chat_template.TEMPLATES`.
        image_token_id: the placeholder of images; None: the model prepends them.
        tokens_per_image: placeholders per image; unused without `image_token_id`.
        image_processor: default: `ImageProcessor(image_size)`, pixels in [-1, 1]; one that cuts
            images into tiles gives every tile its placeholders, and the text around them.
        placeholder_tiles: "all", or "last": of the tiles of an image only the last has
            placeholders, as for NVLM-H, which reads the others by cross-attention.
        max_bad_share: data sets with a larger share of bad samples are refused.

    Attributes:
        tokenizer, template, image_processor: the parts in use.
        vocab_size, pad_token_id, bos_token_id, eos_token_id: those of the tokenizer.

    Raises:
        ValueError: arguments that contradict each other or are out of range.
    """

    def __init__(
        self,
        image_size: int = 224,
        max_text_length: int = 512,
        vocab_size: int = 32000,
        pad_token_id: int = 0,
        bos_token_id: int = 1,
        eos_token_id: int = 2,
        *,
        tokenizer: Tokenizer | None = None,
        template: str | ChatTemplate = "question_answer",
        image_token_id: int | None = None,
        tokens_per_image: int = 0,
        image_processor: BaseImageProcessor | None = None,
        placeholder_tiles: str = "all",
        max_bad_share: float = 0.05,
    ):
        if placeholder_tiles not in ("all", "last"):
            raise ValueError(f"placeholder_tiles={placeholder_tiles!r} must be 'all' or 'last'.")
        if max_text_length < 2 or not 0.0 <= max_bad_share <= 1.0:
            raise ValueError(
                "Expected max_text_length >= 2 and max_bad_share in [0, 1], got "
                f"{max_text_length} and {max_bad_share}."
            )
        if isinstance(template, str):
            if template not in TEMPLATES:
                raise ValueError(
                    f"template must be one of {sorted(TEMPLATES)} or a ChatTemplate, got "
                    f"{template!r}."
                )
            template = TEMPLATES[template]
        if tokenizer is None:
            tokenizer = CharacterTokenizer(vocab_size, pad_token_id, bos_token_id, eos_token_id)
        else:
            given = (vocab_size, pad_token_id, bos_token_id, eos_token_id)
            _check_agreement(tokenizer, given)
        if image_token_id is not None and tokens_per_image < 1:
            raise ValueError(
                f"image_token_id={image_token_id} needs tokens_per_image >= 1, the number of "
                f"embeddings that the model makes of an image; got {tokens_per_image}."
            )
        if image_token_id is not None and not 0 <= image_token_id < tokenizer.vocab_size:
            raise ValueError(
                f"image_token_id={image_token_id} is outside the vocabulary of "
                f"{tokenizer.vocab_size} ids."
            )
        template.end_id(tokenizer)  # Raises now if the template's tokens are missing.
        self.max_text_length = max_text_length
        self.tokenizer = tokenizer
        self.template = template
        self.image_token_id = image_token_id
        self.tokens_per_image = tokens_per_image
        self.image_processor = image_processor or ImageProcessor(image_size)
        self.placeholder_tiles = placeholder_tiles
        self.max_bad_share = max_bad_share
        self.pad_token_id = pad_token_id if tokenizer.pad_id is None else tokenizer.pad_id
        self.bos_token_id = tokenizer.bos_id
        self.eos_token_id = tokenizer.eos_id

    @property
    def vocab_size(self) -> int:
        """Number of ids of the tokenizer, added special tokens included."""
        return self.tokenizer.vocab_size

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Side of the images in pixels; (height, width) when they are not square."""
        height, width = self.image_processor.image_size
        return height if height == width else (height, width)

    def preprocess_image(self, source: Any) -> np.ndarray:
        """Returns float32[H, W, 3] for any source that `images.load_image` reads.

        Raises:
            ValueError: the image is missing, broken, truncated or too large, or is cut into
                several tiles.
        """
        tiles = self.preprocess_tiles(source)
        if len(tiles) != 1:
            raise ValueError(f"This image becomes {len(tiles)} tiles: call preprocess_tiles.")
        return tiles[0]

    def preprocess_tiles(self, source: Any) -> np.ndarray:
        """Returns float32[n, H, W, 3], the tiles of an image; see `preprocess_image`."""
        return self.image_processor.normalize(self.image_processor.tiles(source).pixels)

    def preprocess_text(
        self, question: str, answer: str | None = None, tokenizer: Tokenizer | None = None
    ) -> dict[str, np.ndarray]:
        """Encodes one question, without an image, padded on the right.

        Args:
            question: the user's text.
            answer: the text to learn; without it `input_ids` end where the answer would begin.
            tokenizer: used instead of the processor's.

        Returns:
            `input_ids` int32[max_text_length], by the default template bos, "Question: {question}
            Answer: {answer}", eos, padding; and with an answer `labels` int32[max_text_length]:
            the ids of the answer and its eos, -100 elsewhere. `labels[t]` belongs to position t.

        Raises:
            ValueError: the text does not fit (nothing is ever cut off), or the answer is empty.
        """
        tokenizer = tokenizer or self.tokenizer
        messages = [{"role": "user", "content": question}]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        encoded = encode_conversation(
            messages, tokenizer, self.template, add_generation_prompt=answer is None
        )
        tokens = self._checked_tokens(encoded, f"Question {question[:60]!r}")
        pad_id = self.pad_token_id if tokenizer.pad_id is None else tokenizer.pad_id
        ids, _, labels = pad_tokens([tokens], 1, self.max_text_length, pad_id)
        return {"input_ids": ids[0]} | ({} if answer is None else {"labels": labels[0]})

    def process(self, sample: dict[str, Any]) -> dict[str, np.ndarray]:
        """Encodes one sample whole, without padding and without a batch axis.

        Args:
            sample: see `create_dataset`. If the last message is the user's, it becomes a prompt:
                the ids end where the answer would begin, and there are no labels.

        Returns:
            `text_tokens` int32[S], `images` float32[I, H, W, 3] and, unless it is a prompt,
            `labels` int32[S].

        Raises:
            ValueError: a malformed sample, a bad image, or more than `max_text_length` tokens.
        """
        sample = normalize_sample(sample, 0)
        messages = messages_with_images(sample)
        prompt = not messages or messages[-1]["role"] != "assistant"
        encoded = self.encode(messages, add_generation_prompt=prompt)
        ids, labels = self._checked_tokens(encoded, f"Sample {sample['id']}")
        empty = np.zeros((0, *self.image_processor.image_size, 3), np.float32)
        images = np.concatenate([empty, *map(self.preprocess_tiles, encoded.images)])
        return {"text_tokens": ids, "images": images} | ({} if prompt else {"labels": labels})

    @property
    def marks_images(self) -> bool:
        """Whether ids show where the images are: by placeholders, or by tags of tiles."""
        tags = getattr(self.image_processor, "tags", ())
        return self.image_token_id is not None or any(
            tag in self.tokenizer.special_tokens for tag in tags
        )

    @property
    def stop_ids(self) -> list[int]:
        """Ids at which an answer ends."""
        return self.template.stop_ids(self.tokenizer)

    def encode_prompt(self, messages: list[dict[str, Any]]) -> EncodedConversation:
        """Encodes a conversation that ends where the answer begins; images stay as they are.

        Raises:
            ValueError: a malformed conversation.
        """
        return self.encode(messages, add_generation_prompt=True)

    def render_conversation(
        self, conversation: list[dict[str, Any]], image_token_count: int = 64
    ) -> tuple[list[int], list[int], bool]:
        """Returns `(tokens, targets, has_image)` of a conversation in the processor's template.

        Args:
            conversation: messages; see `chat_template.encode_conversation`.
            image_token_count: placeholders per image.

        Returns:
            Ids; the id where it is learned and -100 elsewhere, not shifted; whether there is an
            image.

        Raises:
            ValueError: a malformed conversation.
        """
        encoded = encode_conversation(
            conversation,
            self.tokenizer,
            self.template,
            image_token_id=self.image_token_id,
            tokens_per_image=image_token_count,
        )
        pairs = zip(encoded.token_ids, encoded.label_mask, strict=True)
        targets = [token if learned else IGNORE_INDEX for token, learned in pairs]
        return encoded.token_ids, targets, bool(encoded.images)

    def encode_answer(self, answer: str) -> list[int]:
        """Returns the ids of an answer with its end token, as they follow a prompt.

        Raises:
            ValueError: the answer is empty.
        """
        prompt = [{"role": "user", "content": "?"}]
        encoded = self.encode([*prompt, {"role": "assistant", "content": answer}])
        pairs = zip(encoded.token_ids, encoded.label_mask, strict=True)
        return [token for token, learned in pairs if learned]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special=True)

    def encode(
        self,
        messages: list[dict[str, Any]],
        continues: bool = False,
        add_generation_prompt: bool = False,
    ) -> EncodedConversation:
        """Encodes a conversation; see `chat_template.encode_conversation`.

        Raises:
            ValueError: a malformed conversation, or an image whose size cannot be read.
        """
        return encode_conversation(
            messages,
            self.tokenizer,
            self.template,
            image_token_id=self.image_token_id,
            tokens_per_image=self.tokens_per_image,
            image_layout=self._layout,
            placeholder_tiles=self.placeholder_tiles,
            add_generation_prompt=add_generation_prompt,
            continues=continues,
        )

    def _layout(self, image: Any, number: int, count: int) -> Layout:
        images = self.image_processor
        if isinstance(images, ImageProcessor):
            return (0,)  # Whatever the image is, which need not be there yet.
        return images.layout(*image_size_of(image, images.max_pixels), number, count)

    def _checked_tokens(
        self, encoded: EncodedConversation, name: str
    ) -> tuple[np.ndarray, np.ndarray]:
        length = len(encoded.token_ids)
        if length > self.max_text_length:
            raise ValueError(
                f"{name} has {length} tokens, more than max_text_length={self.max_text_length}. "
                "Shorten it or raise max_text_length; nothing is cut off."
            )
        ids = np.asarray(encoded.token_ids, np.int32)
        return ids, np.where(encoded.label_mask, ids, np.int32(IGNORE_INDEX))

    def create_dataset(
        self,
        samples: Iterable[dict[str, Any]],
        batch_size: int = 32,
        shuffle: bool = True,
        seed: int = 0,
        *,
        augment: Augmentation | None = None,
        cache_images: bool = True,
        max_turns: int | None = None,
        shuffle_turns: bool = False,
        isolate_turns: bool = False,
        max_text_length: int | None = None,
        bucket: int = 32,
        **kwargs: Any,
    ) -> VQADataset:
        """Makes a data set for `fit` on any backend.

        Conversations longer than `max_text_length` are cut between turns into several rows, each
        with the images; a single turn that is too long makes its sample a bad one. Bad samples
        (missing, broken or huge images, empty answers, ...) are left out and listed in the data
        set's `report`.

        Args:
            samples: `{"image_path", "question", "answer"}`, or `{"images", "messages"}` with
                optional `id` and `source`.
            batch_size: rows per batch.
            shuffle: whether each epoch has its own order of rows.
            seed: order and augmentation are functions of it.
            augment: uint8[H, W, 3], Generator -> uint8[H, W, 3]; see `augmentation`.
            cache_images: decode images once, now, and keep them as uint8[H, W, 3] each.
            max_turns: the most questions in a row; longer conversations are cut.
            shuffle_turns: whether each epoch has its own order of the questions in a row.
            isolate_turns: whether each question sees only the images and itself, as when it is
                asked alone: no question is answered from the answers before it. For rows whose
                questions are independent; the batches then have `turn_ids`.
            max_text_length: the longest row in tokens; default: the processor's.
            bucket: batch lengths are multiples of it (static shapes compile once).
            **kwargs: `workers` etc. of `keras.utils.PyDataset`.

        Raises:
            ValueError: more than `max_bad_share` of the samples are bad, or none is good.
        """
        length = self.max_text_length if max_text_length is None else max_text_length
        encoder = RowEncoder(self.encode, length, max_turns, shuffle_turns, isolate_turns)
        return VQADataset(
            encoder,
            self.image_processor,
            samples,
            pad_id=self.pad_token_id,
            max_length=length,
            max_bad_share=self.max_bad_share,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            augment=augment,
            cache_images=cache_images,
            shuffle_turns=shuffle_turns,
            bucket=bucket,
            **kwargs,
        )

    def create_tensorflow_dataset(
        self,
        data_samples: Iterable[dict[str, Any]],
        batch_size: int = 32,
        shuffle: bool = True,
        num_parallel_calls: int = 4,
    ) -> Any:
        """Makes the same data set as a `tf.data.Dataset`.

        It yields `({"images", "text_tokens"}, labels)`: images float32[B, H, W, 3] when every row
        has one image of one tile, else float32[B, I, H, W, 3] with `num_images` beside them, of
        tiles (no images, no key); text_tokens and labels int32[B, max_text_length]. There is no
        attention mask: padding is on the right, behind all that is learned. The last batch may be
        smaller.

        Args:
            data_samples: see `create_dataset`.
            batch_size: rows per batch.
            shuffle: whether each pass has its own order of rows.
            num_parallel_calls: batches that are prepared at the same time.

        Raises:
            ImportError: TensorFlow is not installed.
            ValueError: see `create_dataset`.
        """
        from dl_techniques.datasets.tensorflow_batches import to_tensorflow

        dataset = self.create_dataset(
            data_samples, batch_size, shuffle=False, bucket=self.max_text_length
        )
        return to_tensorflow(dataset, self.max_text_length, shuffle, num_parallel_calls)

    def get_config(self) -> dict[str, Any]:
        """Returns everything but the tokenizer, JSON-ready."""
        named = TEMPLATES.get(self.template.name) == self.template
        return {
            "max_text_length": self.max_text_length,
            "pad_token_id": self.pad_token_id,
            "template": self.template.name if named else dataclasses.asdict(self.template),
            "image_token_id": self.image_token_id,
            "tokens_per_image": self.tokens_per_image,
            "image_processor": self.image_processor.get_config(),
            "placeholder_tiles": self.placeholder_tiles,
            "max_bad_share": self.max_bad_share,
            "tokenizer_class": type(self.tokenizer).__name__,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], tokenizer: Tokenizer) -> "VQADataProcessor":
        """Builds a processor from `get_config()`'s result and a tokenizer.

        Raises:
            ValueError: the tokenizer is of another class than the configured one.
        """
        config = dict(config)
        expected = config.pop("tokenizer_class")
        if type(tokenizer).__name__ != expected:
            raise ValueError(
                f"The processor was made with a {expected}, got a {type(tokenizer).__name__}."
            )
        processor = image_processor_from_config(config.pop("image_processor"))
        template = config.pop("template")
        if isinstance(template, dict):
            # JSON has no tuples.
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in template.items()}
            template = ChatTemplate(**values)
        return cls(image_processor=processor, template=template, tokenizer=tokenizer, **config)

    def save(self, folder: str | Path) -> None:
        """Writes `preprocessor_config.json` and the tokenizer's files into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.get_config(), indent=2) + "\n"
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
        self.tokenizer.save(folder)

    @classmethod
    def load(cls, folder: str | Path, tokenizer: Tokenizer | None = None) -> "VQADataProcessor":
        """Reads what `save` wrote.

        Args:
            folder: where it is.
            tokenizer: in place of the folder's.

        Raises:
            ValueError: a file is missing or broken.
        """
        path = Path(folder) / CONFIG_FILE
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"'{path}' cannot be read: {error}") from error
        tokenizer = load_tokenizer(folder) if tokenizer is None else tokenizer
        try:
            return cls.from_config(config, tokenizer)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"'{path}' is not that of a processor: {error!r}") from error


def _check_agreement(tokenizer: Tokenizer, given: tuple[int, int, int, int]):
    names = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")
    found = (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)
    for name, value, default, own in zip(names, given, (32000, 0, 1, 2), found, strict=True):
        if value != default and own is not None and value != own:
            raise ValueError(
                f"{name}={value} contradicts the tokenizer, which has {own}; leave it out."
            )


def load_cauldron_sample() -> list[dict[str, Any]]:
    """Returns a few rows that come with the package, one per question.

    Each is `{"id", "image_path", "question", "answer"}`; the images are small drawings.
    """
    return [
        {
            "id": sample["id"],
            "image_path": sample["images"][0],
            "question": sample["messages"][0]["content"],
            "answer": sample["messages"][1]["content"],
        }
        for sample in read_jsonl(SAMPLE_FOLDER / "samples.jsonl")
    ]
