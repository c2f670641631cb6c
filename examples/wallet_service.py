"""Prices and prepaid balances in front of somebody else's app: a top-up and balance service, and a reverse proxy.

    UPSTREAM_URL=http://127.0.0.1:11434 uvicorn examples.wallet_service:app

The app behind is any HTTP server that speaks OpenAI's chat completions; nothing in it changes, and it must be reachable
through here alone. What it sells stands in a table of models (MODELS, by default models.toml beside this file); what no
rule names is free. UPSTREAM_KEY is shown to it as a bearer token. The rest of the set-up comes from the X402KIT_*
variables (x402kit/settings.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final
from urllib.parse import quote

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from x402kit import Models
from x402kit.settings import Settings

UPSTREAM: Final = os.environ["UPSTREAM_URL"].rstrip("/")
KEY: Final = os.environ.get("UPSTREAM_KEY", "")
CONNECTION: Final = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "content-length"}
"""What is between two hosts, and is not passed on."""
OURS: Final = {
    *("host", "authorization", "cookie", "payment-signature", "x-402-payment", "x-payment"),
    *("payment-authorization", "sign-in-with-x", "x-sign-in-with-x", "idempotency-key", "accept-encoding"),
}
"""What callers show us, and not the app behind."""

paywall = Settings.from_env().paywall()
models = Models.load(os.environ.get("MODELS", Path(__file__).with_name("models.toml")))
ANY: Final = httpx.Limits(max_connections=None)
"""What is slow, at either end, holds a connection: nobody waits for those of others."""
upstream = httpx.AsyncClient(timeout=httpx.Timeout(10, read=120), limits=ANY, trust_env=False)


async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
    """An app and no route, so that the gate can't know which paths mean the same behind it, and prices all of them."""
    if scope["type"] == "http":
        await (await forward(Request(scope, receive)))(scope, receive, send)
    else:
        await send({"type": "websocket.close"})


async def forward(request: Request) -> Response:
    """The same request there, and its answer as it comes. One below 400 is charged for."""
    headers = [(name, value) for name, value in request.headers.items() if name not in CONNECTION | OURS]
    headers += [("accept-encoding", "identity")]
    headers += [("authorization", f"Bearer {KEY}")] if KEY else []
    length = request.headers.get("content-length")
    headers += [("content-length", length)] if length else []
    query = request.scope["query_string"].decode("latin-1")
    url = f"{UPSTREAM}{quote(request.scope['path'])}?{query}".removesuffix("?")
    # As it comes: what has no price has no limit that would be kept in memory.
    body = request.stream() if length or "transfer-encoding" in request.headers else None
    asked = upstream.build_request(request.method, url, headers=headers, content=body)
    try:
        answer = await upstream.send(asked, stream=True)
    except (httpx.HTTPError, ClientDisconnect):
        return JSONResponse({"error": {"message": "the model does not answer", "type": "server_error"}}, 502)
    passed = {name: value for name, value in answer.headers.items() if name not in CONNECTION - {"content-length"}}
    return StreamingResponse(answer.aiter_raw(), answer.status_code, passed, background=BackgroundTask(answer.aclose))


async def catalogue(request: Request) -> Response:
    return JSONResponse(models.public())


@contextlib.asynccontextmanager
async def lifespan(_: Starlette) -> AsyncGenerator[None]:
    async with upstream:
        yield


app = paywall.protect(
    Starlette(
        routes=[
            Mount("/v1/x402", paywall.wallet_service(minimum="$0.50", maximum="$100", withdraw=True)),
            Mount("/api/v1/x402", paywall.wallet_service(minimum="$0.50", maximum="$100", dialect="venice")),
            Route("/v1/models", catalogue),
            Mount("/", proxy),
        ],
        lifespan=lifespan,
    ),
    prices={"POST /v1/chat/completions": {"price": models, "ask_usage": True, "report_usage": True}},
)
