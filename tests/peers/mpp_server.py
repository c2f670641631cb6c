"""pympp as a server: a cent of USDC on Base for each priced route, settled by the x402 facilitator at --facilitator.

Prints its address as one JSON line, then runs until SIGTERM. `GET /runs` is free and says how often each priced handler
ran. The routes: `GET /weather`; `POST /echo`, whose challenge is bound to the body by a digest; `GET /key`, which wants
an API key in `Authorization`, and so its payment in `Payment-Authorization`.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from common import serve
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from mpp import Credential, Receipt
from mpp.methods.evm import server as evm
from mpp.methods.evm.assets import BASE_USDC
from mpp.server.decorator import pay
from mpp.server.http import Request as Asked
from mpp.server.mpp import Mpp

SECRET = "a secret of thirty-two bytes, or more"


def body_of(asked: Asked) -> bytes:
    return asked.body or b""


def build(facilitator: str, pay_to: str, price: str) -> FastAPI:
    method = evm.charge(currency=BASE_USDC, recipient=pay_to, facilitator=facilitator)
    selling = Mpp(methods=method, realm="peer.example", secret_key=SECRET)
    keyed = Mpp(methods=method, realm="peer.example", secret_key=SECRET, requires_auth=True)
    app = FastAPI()
    runs: Counter[str] = Counter()

    @app.get("/runs")
    async def count() -> dict[str, int]:
        return dict(runs)

    @app.get("/weather", response_model=None)
    @pay(selling.charge(amount=price, description="a peer's route"))
    async def weather(request: Request, credential: Credential, receipt: Receipt) -> Response:
        runs["weather"] += 1
        return JSONResponse({"weather": "sunny", "payer": receipt.payer})

    @app.post("/echo", response_model=None)
    @pay(selling.charge(amount=price, body=body_of))
    async def echo(request: Request, credential: Credential, receipt: Receipt) -> Response:
        runs["echo"] += 1
        body: Any = await request.json()
        return JSONResponse({"echo": body})

    @app.get("/key", response_model=None)
    @pay(keyed.charge(amount=price))
    async def key(request: Request, credential: Credential, receipt: Receipt) -> Response:
        runs["key"] += 1
        return JSONResponse({"key": request.headers.get("authorization")})

    return app


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--facilitator", required=True, metavar="URL")
    parser.add_argument("--pay-to", required=True, metavar="ADDRESS")
    parser.add_argument("--price", default="0.01", metavar="USDC")
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    serve(build(given.facilitator, given.pay_to, given.price), given.port)


main()
