"""The x402 package as a resource server: its FastAPI middleware in front of a few priced routes.

Prints its address as one JSON line, then runs until SIGTERM. `GET /runs` is free and says how often each priced handler
ran. The routes: `GET /weather` and `POST /echo` settle after the handler (the package's default), `GET /upfront` before
it, `GET /broken` fails after verification. The facilitator is shown the bearer token in PEER_TOKEN, where that is set.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from typing import Any

from common import BASE, is_solana, serve
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from x402 import x402ResourceServer
from x402.http import FacilitatorConfig, HTTPFacilitatorClient, PaymentOption
from x402.http.middleware.fastapi import PaymentMiddlewareASGI
from x402.http.types import RouteConfig
from x402.mechanisms.evm.exact import register_exact_evm_server
from x402.mechanisms.svm.exact import register_exact_svm_server


def selling(facilitator: str, network: str, svm_rpc: str | None) -> x402ResourceServer:
    made = x402ResourceServer(facilitator_client(facilitator))
    if is_solana(network):
        return register_exact_svm_server(made, networks=network, rpc_url=svm_rpc)
    return register_exact_evm_server(made, networks=network)


def build(facilitator: str, pay_to: str, price: str, network: str, svm_rpc: str | None) -> FastAPI:
    def priced(**extra: str) -> RouteConfig:
        option = PaymentOption(scheme="exact", pay_to=pay_to, price=price, network=network, extra=extra or None)
        return RouteConfig(accepts=[option], description="a peer's route", mime_type="application/json")

    app = FastAPI()
    app.add_middleware(
        PaymentMiddlewareASGI,
        routes={
            "GET /weather": priced(),
            "POST /echo": priced(),
            "GET /upfront": priced(paymentFlow="upfront"),
            "GET /broken": priced(),
        },
        server=selling(facilitator, network, svm_rpc),
    )
    runs: Counter[str] = Counter()

    @app.get("/runs")
    async def count() -> dict[str, int]:
        return dict(runs)

    @app.get("/weather")
    async def weather() -> dict[str, str]:
        runs["weather"] += 1
        return {"weather": "sunny"}

    @app.get("/upfront")
    async def upfront() -> dict[str, str]:
        runs["upfront"] += 1
        return {"weather": "paid before"}

    @app.post("/echo")
    async def echo(request: Request) -> dict[str, Any]:
        runs["echo"] += 1
        return {"echo": await request.json()}

    @app.get("/broken")
    async def broken() -> JSONResponse:
        runs["broken"] += 1
        return JSONResponse({"error": "broken"}, status_code=500)

    return app


def facilitator_client(url: str) -> HTTPFacilitatorClient:
    """From the environment, so that no process list shows the token."""
    token = os.environ.get("PEER_TOKEN")
    if token is None:
        return HTTPFacilitatorClient(FacilitatorConfig(url=url))
    shown = {"Authorization": f"Bearer {token}"}
    headers = dict.fromkeys(("verify", "settle", "supported"), shown)
    return HTTPFacilitatorClient({"url": url, "create_headers": lambda: headers})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--facilitator", required=True, metavar="URL")
    parser.add_argument("--pay-to", required=True, metavar="ADDRESS")
    parser.add_argument("--price", default="$0.01")
    parser.add_argument("--network", default=BASE)
    parser.add_argument("--svm-rpc", metavar="URL", help="the offers on Solana bring a blockhash of this node")
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    serve(build(given.facilitator, given.pay_to, given.price, given.network, given.svm_rpc), given.port)


main()
