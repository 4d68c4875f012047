"""`/vision`, `/upload_image` and `/chat`: the small web interface of the guide."""

from typing import Annotated

from fastapi import APIRouter, File, Request, UploadFile
from pydantic import BaseModel, ConfigDict, Field

from dl_techniques.serving.answers import Answers
from dl_techniques.serving.images import checked_image
from dl_techniques.serving.requests import ChatRequest

router = APIRouter(tags=["Pictures"])


class ChatMessage(BaseModel):
    """A question, perhaps about an uploaded image."""

    model_config = ConfigDict(extra="forbid")
    message: str = Field(min_length=1)
    image_id: str | None = None


class ChatResponse(BaseModel):
    """An answer."""

    response: str


class UploadedImage(BaseModel):
    """The name under which an image was kept."""

    image_id: str


@router.get("/vision")
async def vision(request: Request) -> dict:
    """Tell how the model sees, and what its cache of images holds."""
    model = request.app.state.engine.model
    return {
        "enabled": True,
        "encoder": type(model.vision_encoder).__name__,
        "image_size": list(model.image_size),
        "tokens_per_image": model.tokens_per_image,
        "fusion": model.fusion,
        "cache": model.vision_cache.stats(),
    }


@router.post("/upload_image")
def upload_image(request: Request, file: Annotated[UploadFile, File()]) -> UploadedImage:
    """Keep an image for later questions."""
    state = request.app.state
    data = checked_image(file.file.read(), state.settings.max_pixels)
    return UploadedImage(image_id=state.uploads.put(data))


@router.post("/chat")
async def chat(body: ChatMessage, request: Request) -> ChatResponse:
    """Answer one question with the likeliest words."""
    state = request.app.state

    def asked():
        message = {"role": "user", "content": body.message}
        if body.image_id is not None:
            image = {"type": "image", "image": state.uploads.get(body.image_id)}
            message["content"] = [image, {"type": "text", "text": body.message}]
        return [ChatRequest([message], client=request.state.client)]

    answers = await Answers.ask(request, asked)
    (events,) = await answers.whole(request)
    request.state.log.update(new_tokens=answers.tickets[0].new_tokens)
    return ChatResponse(response="".join(event.text for event in events))
