"""An inference service with prices: chat completions like OpenAI's, images by polling, the weather, a list of models.

    x402kit devnet                        # in another shell; the lines that it prints for a seller go into this one
    uvicorn examples.inference:app        # at http://127.0.0.1:8000, as X402KIT_ORIGIN says; the two must agree

Each call is paid for by itself, or from a prepaid balance that is topped up at /v1/x402 (by Venice's clients at
/api/v1/x402). The set-up comes from the X402KIT_* variables (x402kit/settings.py). A balance is spent with wallet
proofs, which are checked against X402KIT_ORIGIN: without it they are refused. The prices stand in models.toml and on
the endpoints; the rest is what the service would be without them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from x402kit import Call, Models, PaidCall, Quote, Tokens, usd
from x402kit.errors import BadRequest
from x402kit.settings import Settings

from .jobs import Jobs, name_of
from .stand_in import generate, tokens

IMAGE = usd("$0.02")
TOP_UP_MIN = "$0.01"
JOB_SECONDS = 600
"""After so long without an end, what was paid for a job goes back."""
STATUS_SECONDS, IMAGE_SECONDS = 24 * 3600, 3600
"""How long the links to a job and to its images are good; to ask for the job gives new ones to the images."""

settings = Settings.from_env()
paywall = settings.paywall()
models = Models.load(Path(__file__).with_name("models.toml"))
demo = models["demo"]
assert isinstance(demo, Tokens)
MAX_OUTPUT, DEFAULT_OUTPUT = demo.max_output, demo.default_output or demo.max_output
jobs = Jobs(settings.ledger)

T = TypeVar("T", bound=BaseModel)


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    include_usage: bool = False


class Chat(BaseModel):
    """A chat completion as asked for."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, le=MAX_OUTPUT)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_OUTPUT)
    n: Literal[1] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def prompt_tokens(self) -> int:
        return sum(len(tokens(message.text)) + 1 for message in self.messages)

    @property
    def most(self) -> int:
        """The most tokens that the answer may have: asked for, or the model's default cap."""
        return self.max_completion_tokens or self.max_tokens or DEFAULT_OUTPUT


class Image(BaseModel):
    type: Literal["image"] = "image"
    prompt: str = Field(min_length=1, max_length=2_000)


class Generation(BaseModel):
    requests: list[Image] = Field(min_length=1, max_length=8)


def read(kind: type[T], body: Any) -> T:
    """What was asked for. The price reads it first, so that a request that can't be served is refused unpaid."""
    try:
        return kind.model_validate(body)
    except ValidationError as e:
        fault = e.errors(include_input=False)[0]
        raise BadRequest(f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}") from None


# Chat: the table says what a token costs. Held or paid is the most that the call can cost; it is charged for what it
# used, and what was paid above that is balance. The usage is read from the answer; a stream reports it as it goes, for
# a caller may not want it in the stream, or may leave.


async def chat_price(call: Call) -> Quote:
    read(Chat, call.json)
    return await models.quote(call)


@paywall.paid(chat_price, metered=True, report_usage=True, description="Chat completion", mime_type="application/json")
async def chat_completions(request: Request) -> Response:
    chat = read(Chat, await request.json())
    if chat.stream:
        return StreamingResponse(events(chat, request.scope["x402kit"]), media_type="text/event-stream")
    written = [token async for token in generate([m.text for m in chat.messages], chat.most)]
    message = {"role": "assistant", "content": "".join(written)}
    choice = {"index": 0, "message": message, "finish_reason": finish(chat, len(written)), "logprobs": None}
    return JSONResponse({**head(chat, "chat.completion"), "choices": [choice], "usage": usage(chat, len(written))})


async def events(chat: Chat, paid: PaidCall) -> AsyncIterator[str]:
    """Server-sent events, as OpenAI's: one for each token, one with the usage where asked for, ``[DONE]``."""
    made = head(chat, "chat.completion.chunk")
    counted = chat.stream_options is not None and chat.stream_options.include_usage

    def event(choices: list[Any], used: Any = None) -> str:
        return f"data: {json.dumps({**made, 'choices': choices, **({'usage': used} if counted else {})})}\n\n"

    def choice(delta: dict[str, str], reason: str | None = None) -> list[Any]:
        return [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]

    yield event(choice({"role": "assistant", "content": ""}))
    written = 0
    async for token in generate([m.text for m in chat.messages], chat.most):
        written += 1
        paid.report(usage(chat, written))
        yield event(choice({"content": token}))
    yield event(choice({}, finish(chat, written)))
    if counted:
        yield event([], usage(chat, written))
    yield "data: [DONE]\n\n"


def head(chat: Chat, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": chat.model}


def finish(chat: Chat, written: int) -> str:
    return "length" if written == chat.most else "stop"


def usage(chat: Chat, written: int) -> dict[str, int]:
    read_ = chat.prompt_tokens
    return {"prompt_tokens": read_, "completion_tokens": written, "total_tokens": read_ + written}


# Images: the answer says where to ask for them: by the id, for as long as the job is kept, or by a signed link that can
# be handed on. What was paid or held waits for the job's end; an image that could not be drawn is not charged for.


def images_price(call: Call) -> Quote:
    count = len(read(Generation, call.json).requests)
    return Quote(count * IMAGE, f"{count} image(s)")


@paywall.paid(images_price, description="Image generation", mime_type="application/json")
async def generation_requests(request: Request) -> Response:
    wanted = read(Generation, await request.json())
    paid: PaidCall = request.scope["x402kit"]
    hold = paid.defer(JOB_SECONDS)
    job = await run_in_threadpool(jobs.start, hold, [image.prompt for image in wanted.requests], IMAGE)
    link = paywall.sign_url(f"/v1/jobs/{name_of(job['request_id'])}", STATUS_SECONDS)
    place = f"/v1/generation-requests/{job['request_id']}"
    return JSONResponse({**job, "status_url": link}, 202, headers={"Location": place})


async def generation_request(request: Request) -> Response:
    id_ = request.path_params["request_id"]
    return told(await run_in_threadpool(jobs.look, id_), name_of(id_))


@paywall.signed
async def job_status(request: Request) -> Response:
    name = request.path_params["name"]
    return told(await run_in_threadpool(jobs.named, name), name)


def told(job: dict[str, Any] | None, name: str) -> Response:
    if job is None:
        raise HTTPException(404, "no such generation request")
    for number, image in enumerate(job.get("results", ())):
        if image["status"] == "succeeded":
            image["result_url"] = paywall.sign_url(f"/v1/jobs/{name}/images/{number}", IMAGE_SECONDS)
    return JSONResponse(job, headers={"Cache-Control": "no-store"})


@paywall.signed
async def job_image(request: Request) -> Response:
    job = await run_in_threadpool(jobs.named, request.path_params["name"])
    images = {str(number): image.get("svg") for number, image in enumerate(job.get("results", []) if job else [])}
    svg = images.get(request.path_params["number"])
    if svg is None:
        raise HTTPException(404, "no such image")
    # Whoever opens it in a browser sees what a caller had drawn: it may do nothing there.
    headers = {"Cache-Control": "no-store", "Content-Security-Policy": "sandbox; default-src 'none'"}
    return Response(svg, media_type="image/svg+xml", headers=headers)


# The rest: one fixed price, and one thing for free.


@paywall.paid("$0.01", description="The weather", mime_type="application/json")
async def weather(request: Request) -> Response:
    city = request.query_params.get("city", "Lisbon")
    return JSONResponse({"city": city, "weather": "sunny", "temperature_c": 24})


async def list_models(request: Request) -> Response:
    return JSONResponse(models.public())


async def http_error(request: Request, error: Exception) -> Response:
    """Our own errors in OpenAI's shape; what the gate refuses, it answers itself."""
    assert isinstance(error, HTTPException)
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    body = {"message": error.detail, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": body}, error.status_code, headers=error.headers)


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[None]:
    """The paywall is open before this and closed after it, so that jobs can be ended."""
    running = asyncio.create_task(jobs.run(paywall))
    yield
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


def wallet_services() -> list[Mount]:
    """Balances are topped up on a chain: a seller on Lightning alone has none, its tokens keep what is left of them."""
    if not paywall.rails:
        return []
    return [
        Mount("/v1/x402", paywall.wallet_service(minimum=TOP_UP_MIN)),
        Mount("/api/v1/x402", paywall.wallet_service(minimum=TOP_UP_MIN, dialect="venice")),
    ]


app = paywall.protect(
    Starlette(
        routes=[
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            Route("/v1/generation-requests", generation_requests, methods=["POST"]),
            Route("/v1/generation-requests/{request_id}", generation_request),
            Route("/v1/jobs/{name}", job_status),
            Route("/v1/jobs/{name}/images/{number}", job_image),
            Route("/v1/weather", weather),
            Route("/v1/models", list_models),
            *wallet_services(),
        ],
        exception_handlers={HTTPException: http_error},
        lifespan=lifespan,
    )
)
