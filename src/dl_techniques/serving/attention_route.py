"""`/attention`: where the model looked for its last answer."""

from fastapi import APIRouter, Request
from pydantic import BaseModel

from dl_techniques.serving.answers import Answers
from dl_techniques.serving.looking import LookRequest
from dl_techniques.serving.openai_schemas import Conversation

router = APIRouter(tags=["Pictures"])


class ImageAttention(BaseModel):
    """What of the answer's attention falls on one image, and where: a picture of each tile."""

    share: float
    tiles: list[str]


class AttentionResponse(BaseModel):
    """The images of the conversation, in order."""

    images: list[ImageAttention]


@router.post("/attention")
async def attention(body: Conversation, request: Request) -> AttentionResponse:
    """Show where the tokens of a conversation's last message, the model's answer, looked."""
    state = request.app.state

    def asked():
        return [LookRequest(body.conversation(state.settings), client=request.state.client)]

    answers = await Answers.ask(request, asked)
    (events,) = await answers.whole(request)
    return AttentionResponse(images=events[0].found)
