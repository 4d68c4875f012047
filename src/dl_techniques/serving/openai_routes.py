"""`/v1/models` and `/v1/chat/completions`, as OpenAI's clients call them."""

import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse

from dl_techniques.serving.answers import Answers
from dl_techniques.serving.failures import RefusedError, response_of
from dl_techniques.serving.openai_schemas import ChatCompletionRequest
from dl_techniques.serving.requests import ChatRequest, Event

router = APIRouter(prefix="/v1", tags=["OpenAI"])


@router.get("/models")
async def models(request: Request) -> dict:
    """List the one model that is served."""
    state = request.app.state
    card = {
        "id": state.settings.model_name,
        "object": "model",
        "created": state.started,
        "owned_by": "dl_techniques",
    }
    return {"object": "list", "data": [card]}


@router.get("/models/{name:path}")
async def model(name: str, request: Request) -> dict:
    """Describe the model."""
    (card,) = (await models(request))["data"]
    if name != card["id"]:
        raise _no_such_model(name, card["id"])
    return card


@router.post("/chat/completions", response_model=None)
async def chat_completions(
    body: ChatCompletionRequest, request: Request
) -> JSONResponse | StreamingResponse:
    """Answer a conversation, whole or as server-sent events (`stream`)."""
    completion = _Completion(body, request)
    answers = await Answers.ask(request, completion.asked)
    if body.stream:
        # Proxies must not wait for the whole answer either.
        headers = {"X-Accel-Buffering": "no"}
        stream = completion.stream(answers)
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
    return JSONResponse(completion.whole(answers, await answers.whole(request)))


def _no_such_model(name, own):
    message = f"There is no model {name!r} here, only {own!r}."
    return RefusedError(404, message, "model_not_found", "model")


class _Completion:
    """One call: its requests, and the form of its answer."""

    def __init__(self, body: ChatCompletionRequest, request: Request):
        self._body, self._request = body, request
        self._state = request.app.state
        self._head = {
            "id": "chatcmpl-" + secrets.token_hex(12),
            "created": int(time.time()),
            "model": body.model,
        }
        settings, engine = self._state.settings, self._state.engine
        if body.model != settings.model_name:
            raise _no_such_model(body.model, settings.model_name)
        limits = {
            "n": min(settings.max_answers, engine.most_of_a_client),
            "max_tokens": engine.max_new_tokens,
            "max_completion_tokens": engine.max_new_tokens,
        }
        for name, most in limits.items():
            if (getattr(body, name) or 0) > most:
                message = f"{name}={getattr(body, name)} is more than the {most} allowed here."
                raise RefusedError(400, message, "invalid_value", name)
        for name, other in (("top_logprobs", "logprobs"), ("stream_options", "stream")):
            if getattr(body, name) and not getattr(body, other):
                message = f"{name} needs {other}=true."
                raise RefusedError(400, message, "invalid_value", name)

    def asked(self) -> list[ChatRequest]:
        """Return what the engine is asked: `n` times the same with other seeds."""
        body = self._body
        seed = secrets.randbelow(2**31) if body.seed is None else body.seed
        common = {
            "messages": body.conversation(self._state.settings),
            "max_new_tokens": body.most_tokens,
            "sampler": body.sampler,
            "stop_strings": body.stop_strings(),
            "ignore_eos": body.ignore_eos,
            "top_logprobs": body.top_logprobs or 0,
            "client": self._request.state.client,
        }
        return [ChatRequest(**common, seed=(seed + index) % 2**63) for index in range(body.n)]

    def whole(self, answers: Answers, collected: list[list[Event]]) -> dict:
        """Return the body of the answer."""
        choices = []
        for index, events in enumerate(collected):
            text = "".join(event.text for event in events)
            choice = {
                "index": index,
                "message": {"role": "assistant", "content": text},
                "finish_reason": events[-1].finish_reason,
                "logprobs": self._logprobs(events),
            }
            choices.append(choice)
        usage = self._usage(answers)
        return {"object": "chat.completion", **self._head, "choices": choices, "usage": usage}

    async def stream(self, answers: Answers) -> AsyncIterator[str]:
        """Yield the answer as server-sent events."""
        try:
            for index in range(self._body.n):
                yield self._chunk(index, {"role": "assistant", "content": ""})
            async with aclosing(answers.events(self._request)) as events:
                async for news in events:
                    if news is None:
                        yield ": waiting\n\n"
                        continue
                    index, event = news
                    if event.text or (self._body.logprobs and event.ids):
                        yield self._chunk(index, {"content": event.text}, event)
                    if event.is_last:
                        yield self._chunk(index, {}, reason=event.finish_reason)
            usage = self._usage(answers)
            if self._body.stream_options and self._body.stream_options.include_usage:
                yield self._line({"choices": [], "usage": usage})
            yield "data: [DONE]\n\n"
        except Exception as error:
            # The status is sent already.
            yield f"data: {response_of(error).body.decode()}\n\n"
        finally:
            answers.cancel()

    def _chunk(self, index, delta, event=None, reason=None):
        logprobs = None if event is None else self._logprobs([event])
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        return self._line({"choices": [choice]})

    def _line(self, values):
        chunk = {"object": "chat.completion.chunk", **self._head, **values}
        return f"data: {json.dumps(chunk)}\n\n"

    def _logprobs(self, events):
        if not self._body.logprobs:
            return None
        ends, content = () if self._body.ignore_eos else self._state.engine.stop_ids, []
        for event in events:
            news = zip(event.ids, event.logprobs, event.top_logprobs, strict=True)
            for token, logprob, likeliest in news:
                if token not in ends:
                    others = [self._logprob(*other) for other in likeliest]
                    content.append({**self._logprob(token, logprob), "top_logprobs": others})
        return {"content": content}

    def _logprob(self, token, logprob):
        tokenizer = self._state.engine.model.processor.tokenizer
        encoded = tokenizer.token_bytes(token)
        # Special tokens have a spelling, but are no part of the answer's text.
        is_text = token not in tokenizer.special_tokens.values()
        return {
            "token": encoded.decode(errors="replace"),
            "bytes": list(encoded) if is_text else None,
            "logprob": max(logprob, -9999.0),  # JSON has no infinity.
        }

    def _usage(self, answers):
        """Return the counts of tokens, which the log gets too."""
        tickets = answers.tickets
        prompt, new = tickets[0].prompt_tokens, sum(ticket.new_tokens for ticket in tickets)
        cached = tickets[0].reused_tokens
        self._request.state.log.update(prompt_tokens=prompt, cached_tokens=cached, new_tokens=new)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": new,
            "total_tokens": prompt + new,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
