"""The wallet service: what a payer's program asks of its balance. An ASGI app, mountable at any prefix.

    GET  /                       what is accepted, and where
    POST /top-up                 {"amount_usdc": "1.00"}: paid by x402, credited to who paid (credit.py)
    GET  /balance/{wallet}       with the wallet's proof
    GET  /transactions/{wallet}  with the wallet's proof; newest first
    POST /withdraw               the unused balance back to its wallet; off unless the seller turns it on

What the answers look like is a shape's part (wallet_shapes.py, wallet_venice.py). Without a proof: 402, no offers and
the proof's challenge; with a bad one: 401; with another wallet's: 403.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from ..errors import BadRequest, InsufficientBalance, PaymentUsed, ServerError
from ..ledger.port import Store
from ..model import BODY_SECONDS, Claim, Entry
from ..money import Asset, parse_units
from ..networks.port import Rail
from ..paywall.balances import Balances
from ..paywall.challenge import Challenges
from ..paywall.proofs import Proven
from ..paywall.resource import Resource
from ..protocols.encoding import parse_object
from ..protocols.siwx import find_proof
from . import answers
from .answers import Answer
from .body import Disconnected, read_body
from .call import PaidCall
from .marks import mark
from .wallet_price import AmountOutOfRange, TopUp
from .wallet_shapes import Shape, Where, json_answer

__all__ = ["Bank", "WalletService"]

_BODY_MAX: Final = 4096


class Bank(Protocol):
    """What the service needs of the paywall that it belongs to."""

    origin: str
    service: str
    rails: tuple[Rail, ...]
    store: Store
    challenges: Challenges
    balances: Balances

    def sign_in(self, url: str) -> Answer:
        """The 402 of a place that takes a proof alone: no offers, and the proof's challenge."""
        ...

    async def withdraw(self, proven: Proven, amount: int | None) -> Claim:
        """Send balance back to its wallet."""
        ...


class WalletService:
    """Made by ``Paywall.wallet_service``."""

    def __init__(self, bank: Bank, shape: Shape, price: TopUp, *, withdraw: bool) -> None:
        self._bank = bank
        self.shape = shape
        self.price = price
        self.resource = Resource(
            "x402kit.top-up",
            price,
            description="Top-up of the prepaid balance",
            mime_type="application/json",
            body_limit=_BODY_MAX,
            credits=True,
            canonical=price.canonical,
            amounts=(price.minimum, price.maximum) if price.any_amount else None,
        )
        self.withdraws = withdraw
        guarded = self._guarded
        routes = [
            Route("/", guarded(self.discovery)),
            Route("/top-up", mark(guarded(self.top_up), self.resource), methods=["POST"]),
            Route("/balance/{wallet}", guarded(self.balance)),
            Route("/transactions/{wallet}", guarded(self.transactions)),
        ]
        if withdraw:
            routes.append(Route("/withdraw", guarded(self.withdraw), methods=["POST"]))
        self.router = Router(routes, redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            await Answer(204, answers.COMMON)(scope, receive, send)
            return
        try:
            # With an app in the scope the router raises what it would else answer as plain text.
            await self.router({"app": self, **scope}, receive, send)
        except HTTPException as e:
            answer = self.shape.problem(NoSuchPlace() if e.status_code == 404 else WrongMethod())
            extra = [(name.lower().encode(), value.encode()) for name, value in (e.headers or {}).items()]
            await Answer(answer.status, [*answer.headers, *extra], answer.body)(scope, receive, send)

    async def discovery(self, request: Request) -> Answer:
        bank, base = self._bank, self._url(request)
        networks = [
            {
                "network": rail.network,
                "scheme": rail.scheme,
                "asset": rail.asset.address,
                "currency": rail.asset.symbol,
                "decimals": rail.asset.decimals,
                "payTo": rail.pay_to,
            }
            for rail in bank.rails
        ]
        endpoints = {"top_up": "top-up", "balance": "balance/{wallet}", "transactions": "transactions/{wallet}"}
        if self.withdraws:
            endpoints["withdraw"] = "withdraw"
        return json_answer(
            {
                "x402Version": 2,
                "service": bank.service,
                "dialect": self.shape.name,
                "networks": networks,
                "endpoints": {name: f"{base}/{path}" for name, path in endpoints.items()},
                "minimum_top_up_usdc": f"{self.price.minimum.value:.6f}",
                "maximum_top_up_usdc": f"{self.price.maximum.value:.6f}",
                "proof_headers": ["SIGN-IN-WITH-X", "X-Sign-In-With-X"],
            }
        )

    def _url(self, request: Request) -> str:
        """Where we stand, seen from outside; without a configured origin the Host header names it, for display."""
        scope, host = request.scope, request.headers.get("host", "localhost")
        return (self._bank.origin or f"{scope.get('scheme', 'http')}://{host}") + str(scope.get("root_path", ""))

    async def top_up(self, request: Request) -> Answer:
        """Runs for a top-up that is credited, as often as it is asked for: all of it comes from the entry."""
        paid: PaidCall = request.scope["x402kit"]
        assert paid.entry is not None
        asset = self._bank.challenges.asset_at(paid.network, paid.asset)
        return self.shape.topped_up(Where(paid.payer, paid.network, asset), paid.entry)

    async def balance(self, request: Request) -> Answer:
        proven = await self._proven(request)
        found = await self._bank.store.balance(self._bank.balances.account(proven))
        return self.shape.balance(self._where(proven), found, self.price)

    async def transactions(self, request: Request) -> Answer:
        proven = await self._proven(request)
        account, store = self._bank.balances.account(proven), self._bank.store

        async def entries(before: int | None, limit: int) -> list[Entry]:
            return await store.entries(account, before, limit)

        return await self.shape.transactions(request, self._where(proven), await store.balance(account), entries)

    async def withdraw(self, request: Request) -> Answer:
        """A contract wallet is asked again (F07). The same proof again tells of the same payout."""
        proven = await self._proven(request, fresh=True)
        where = self._where(proven)
        amount = self._amount(await read_body(request.receive, _BODY_MAX, BODY_SECONDS), where.asset)
        try:
            return self.shape.withdrawal(where, await self._bank.withdraw(proven, amount))
        except InsufficientBalance as e:
            raise TooLittle(e.reason) from e

    def _amount(self, body: bytes, asset: Asset) -> int | None:
        """Of a withdrawal; None for all. A small part would cost more to send than it is worth."""
        try:
            asked = parse_object(body, floats=True) if body.strip() else {}
            text = asked.pop("amount_usdc", None)
            # Who spelled its name in another way does not mean all.
            amount = None if text is None and not asked else parse_units(text, asset.decimals)
        except ValueError as e:
            raise BadRequest("invalid_amount", detail='the body is {"amount_usdc": "1.00"}, or none for all') from e
        if amount is not None and amount < self.price.minimum.atomic(asset.decimals):
            raise AmountOutOfRange(f"a withdrawal is at least {self.price.minimum}, or all")
        return amount

    async def _proven(self, request: Request, *, fresh: bool = False) -> Proven:
        """Who asks: the wallet of the path, proved. Raises ``SignIn`` without a proof, ``NotYours`` for another's."""
        raw = find_proof(request.scope["headers"])
        if raw is None:
            raise SignIn(self._bank.sign_in(request.scope["path"]))
        proven = await self._bank.balances.proofs.verify(raw, fresh=fresh)
        asked: str = request.path_params.get("wallet", proven.address)
        same = asked.lower() == proven.address.lower() if proven.network.startswith("eip155:") else False
        if asked != proven.address and not same:
            raise NotYours()
        return proven

    def _where(self, proven: Proven) -> Where:
        self._bank.balances.account(proven)  # refuses a network on which no balance is kept
        return Where(proven.address, proven.network, self._bank.balances.assets[proven.network])

    def _guarded(self, endpoint: Callable[[Request], Awaitable[Answer]]) -> Callable[[Request], Awaitable[Any]]:
        """Typed errors become answers here: the service may stand in an app that knows nothing of them."""

        @functools.wraps(endpoint)
        async def guarded(request: Request) -> Any:
            try:
                return await endpoint(request)
            except SignIn as e:
                return e.answer
            except Disconnected:
                return Response(status_code=204)  # nobody reads it
            except ServerError as e:
                return self.shape.problem(e)

        return guarded


class SignIn(Exception):  # an answer, on its way out of an endpoint
    """A proof is asked for."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer


class NotYours(PaymentUsed):
    """The proof is good, and another wallet's."""

    code, money = "wallet-mismatch", "no"
    hint = "The proof is of another wallet."


class TooLittle(BadRequest):
    """A withdrawal of more than there is. It is no 402: to pay would not help."""

    code = "insufficient-balance"
    hint = "There is not so much on the balance. Nothing was sent, and the proof was not spent."


class NoSuchPlace(ServerError):
    status, code = 404, "not-found"
    hint = "The wallet service has nothing here. GET its own path to see what it has."


class WrongMethod(ServerError):
    status, code = 405, "method-not-allowed"
    hint = "This place of the wallet service takes another method."
