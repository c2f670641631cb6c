"""A small shop of ours on a real chain, for other implementations' clients and through their facilitators."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from x402kit import Call, Paywall, Usd, usd
from x402kit.devnet import EvmDevnet, SvmDevnet
from x402kit.networks import Base
from x402kit.networks.port import Rail

from .serving import serving

__all__ = ["PAY_TO", "PRICE", "Seller", "running", "seller", "selling", "transferred"]

PAY_TO = "0x1000000000000000000000000000000000000402"
PRICE = 10_000
"""What the weather costs, atomic units."""


@dataclass
class Seller:
    """``seen`` are the headers of the requests as they came, ``runs`` the names of the handlers that ran."""

    chain: Any
    pay_to: str = PAY_TO
    app: ASGIApp | None = None
    url: str = ""
    seen: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    runs: list[str] = field(default_factory=list[str])
    failing: int = 0
    earned_before: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None
        if scope["type"] == "http":
            self.seen.append({name.decode(): value.decode() for name, value in scope["headers"]})
        await self.app(scope, receive, send)

    def fresh(self) -> Seller:
        """The same shop with nothing remembered: what a test begins with."""
        self.seen.clear()
        self.runs.clear()
        self.failing = 0
        self.earned_before = self.balance
        return self

    @property
    def balance(self) -> int:
        """What the recipient has on the chain."""
        found: int = self.chain.balance_of(self.pay_to)
        return found

    @property
    def earned(self) -> int:
        """Atomic units that have come in since ``fresh``."""
        return self.balance - self.earned_before


@contextlib.contextmanager
def selling(chain: EvmDevnet | SvmDevnet, rail: Rail, place: Path, **settings: Any) -> Generator[Seller]:
    """The shop on a free port, paid on ``rail``; its ledger is kept in ``place``, ``settings`` are the paywall's."""
    seller = Seller(chain, rail.pay_to)
    seller.app = _make_app(seller, Paywall([rail], place / "payments.db", **settings))
    with serving(seller) as seller.url:
        yield seller


def transferred(chain: EvmDevnet, transaction: str, to: str = PAY_TO) -> int:
    """What a transaction brought somebody, by the token's one log about it."""
    receipt = chain.rpc("eth_getTransactionReceipt", transaction)
    assert receipt["status"] == "0x1"
    found = [log for log in receipt["logs"] if len(log["topics"]) == 3 and log["topics"][2].endswith(to[2:].lower())]
    assert [log["address"] for log in found] == [chain.usdc.lower()]
    return int(found[0]["data"], 16)


def _by_count(call: Call) -> Usd:
    return usd("$0.004") * int(call.json["n"])


def _make_app(seller: Seller, paywall: Paywall) -> ASGIApp:
    @paywall.paid("$0.01", description="The weather", mime_type="application/json")
    async def weather(request: Request) -> JSONResponse:
        seller.runs.append("weather")
        if seller.failing:
            seller.failing -= 1
            raise RuntimeError("the handler's own fault")
        return JSONResponse({"weather": "sunny"})

    @paywall.paid(_by_count, description="Images", mime_type="application/json")
    async def images(request: Request) -> JSONResponse:
        seller.runs.append("images")
        return JSONResponse({"made": (await request.json())["n"], "for": request.scope["x402kit"].payer}, 201)

    @paywall.paid("$0.01", settle="after")
    async def after(request: Request) -> JSONResponse:
        seller.runs.append("after")
        return JSONResponse({"weather": "after"})

    routes = [
        Route("/weather", weather),
        Route("/images", images, methods=["POST"]),
        Route("/after", after),
    ]
    return paywall.protect(Starlette(routes=routes))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seller]:
    """On a chain of its own, paid to a wallet of ours, for a whole module."""
    with EvmDevnet() as chain:
        rail = Base(pay_to=PAY_TO, key=chain.accounts[0].private_key, rpc=chain.rpc_url)
        with selling(chain, rail, tmp_path_factory.mktemp("seller")) as made:
            yield made


@pytest.fixture
def seller(running: Seller) -> Seller:
    """As new."""
    return running.fresh()
