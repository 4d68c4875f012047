"""Looking: a request for where an answer's tokens looked, on its way through the engine."""

import base64
import io
from dataclasses import dataclass
from typing import Any

from dl_techniques.generation.prompts import Prompt
from dl_techniques.serving.requests import Event, Ticket
from dl_techniques.visualization.answer_attention import answer_attention, heated

SIDE = 224


@dataclass(frozen=True)
class LookRequest:
    """An answered conversation, of whose last answer the attention is wanted.

    Attributes:
        messages: A conversation with images; its last message is the assistant's, a text.
        client: See `ChatRequest`.
    """

    messages: list[dict[str, Any]]
    client: str = ""


class Looking:
    """What the engine does for a `LookRequest`: in the place of a `Running`, and done at once.

    Its one event's `found` has an entry for each image in order, {"share": the part of the
    answer's attention that falls on it, "tiles": a picture of each tile, as a data URI}.

    Args:
        ticket: Gets the news.
        prompt: The conversation up to the answer.
        answer_ids: The answer.
    """

    is_seated = False  # It takes no place in the batch.

    def __init__(self, ticket: Ticket, prompt: Prompt, answer_ids: list[int]):
        self.ticket, self.request = ticket, ticket.request
        self._prompt, self._answer_ids = prompt, answer_ids

    def begin(self, model) -> None:
        """Compute what is wanted and hand it on; nothing joins the batch.

        Raises:
            ValueError: if an image cannot be decoded.
        """
        tiles, shares = answer_attention(model, self._prompt, self._answer_ids)
        heat = shares.mean(axis=0)
        brightest = max(heat.max(), 1e-9)
        found, done = [], 0
        for count in self._prompt.tiles:
            part = slice(done, done + count)
            done += count
            pictures = [
                _data_uri(heated(tile, values / brightest, SIDE))
                for tile, values in zip(tiles[part], heat[part], strict=True)
            ]
            found.append({"share": float(heat[part].sum()), "tiles": pictures})
        self.ticket.give(Event(found=found))


def _data_uri(picture) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
