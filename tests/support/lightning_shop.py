"""A shop of ours that is paid on Base and by Lightning, and talks x402, L402 and Payment: for others' clients."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from x402kit import Paywall
from x402kit.client import Limits, Payer
from x402kit.devnet import LightningDevnet, LightningNode
from x402kit.model import Json
from x402kit.networks import FixedPrice, Lnd
from x402kit.networks.lightning import Lightning
from x402kit.networks.port import Rail
from x402kit.pricing.passes import Pass

from .serving import serving

__all__ = [
    "BITCOIN_PRICE",
    "PRICE",
    "PRICE_MSAT",
    "LightningShop",
    "by_lightning",
    "invoice_of",
    "lightning_rail",
    "lightning_shop",
    "paying",
    "peer_node",
    "running",
    "shop",
]

BITCOIN_PRICE = "100000"
PRICE = 10_000
"""What a call costs, in atomic units of USDC."""
PRICE_MSAT = 10_000
"""The same, at that price of a bitcoin."""


@dataclass
class LightningShop:
    """``seen`` are the headers of the requests as they came, ``runs`` the names of the handlers that ran."""

    app: ASGIApp | None = None
    url: str = ""
    seen: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    runs: list[str] = field(default_factory=list[str])
    failing: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None
        if scope["type"] == "http":
            self.seen.append({name.decode(): value.decode() for name, value in scope["headers"]})
        await self.app(scope, receive, send)

    def fresh(self) -> LightningShop:
        """The same shop with nothing remembered: what a test begins with."""
        self.seen.clear()
        self.runs.clear()
        self.failing = 0
        return self


def lightning_rail(node: LightningNode) -> Lightning:
    """Invoices of a devnet's node, with the macaroon that can't pay."""
    return Lightning(Lnd(node.url, node.invoice_macaroon), price=FixedPrice(BITCOIN_PRICE), network=node.network)


def by_lightning(nodes: LightningDevnet, node: Lnd | None = None, **settings: Any) -> Payer:
    """A payer with the payer's node, and nothing else."""
    node = node or Lnd(nodes.payer.url, nodes.payer.macaroon)
    limits = Limits(per_call="$0.05")
    return Payer(lightning=node, btc_usd=BITCOIN_PRICE, limits=limits, allow_insecure=True, backoff=0, **settings)


def peer_node(node: LightningNode) -> str:
    """A node as the programs in tests/peers want it, in PEER_NODE."""
    return json.dumps({"url": node.url, "macaroon": node.macaroon})


def invoice_of(node: LightningNode, payment_hash: str) -> Json:
    """What a devnet's node knows of an invoice of its own."""
    headers = {"Grpc-Metadata-macaroon": node.macaroon}
    found: Json = httpx.get(f"{node.url}/v1/invoice/{payment_hash}", headers=headers).raise_for_status().json()
    return found


@contextlib.contextmanager
def lightning_shop(rails: Sequence[Rail | Lightning], place: Path, **settings: Any) -> Generator[LightningShop]:
    """The shop on a free port: GET /weather, POST /echo, and GET /pass, where a token is good for three calls."""
    shop = LightningShop()
    shop.app = _make_app(shop, Paywall(rails, place / "payments.db", **settings))
    with serving(shop) as shop.url:
        yield shop


def _make_app(shop: LightningShop, paywall: Paywall) -> ASGIApp:
    @paywall.paid("$0.01", description="The weather")
    async def weather(request: Request) -> JSONResponse:
        shop.runs.append("weather")
        if shop.failing:
            shop.failing -= 1
            raise RuntimeError("the handler's own fault")
        return JSONResponse({"weather": "sunny"})

    @paywall.paid("$0.01")
    async def echo(request: Request) -> JSONResponse:
        shop.runs.append("echo")
        return JSONResponse({"echo": await request.json()})

    @paywall.paid("$0.01", l402=Pass(calls=3))
    async def several(request: Request) -> JSONResponse:
        shop.runs.append("pass")
        return JSONResponse({"call": len(shop.runs)})

    routes = [
        Route("/weather", weather),
        Route("/echo", echo, methods=["POST"]),
        Route("/pass", several),
    ]
    return paywall.protect(Starlette(routes=routes))


@pytest.fixture(scope="module")
def running(lightning: LightningDevnet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightningShop]:
    """On Lightning alone, for a whole module."""
    with lightning_shop([lightning_rail(lightning.seller)], tmp_path_factory.mktemp("shop")) as made:
        yield made


@pytest.fixture
def shop(running: LightningShop) -> LightningShop:
    """As new."""
    return running.fresh()


@pytest.fixture
def paying(lightning: LightningDevnet) -> Iterator[Payer]:
    """Its payer."""
    with contextlib.closing(by_lightning(lightning)) as payer:
        yield payer
