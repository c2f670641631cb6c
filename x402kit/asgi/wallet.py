"""The wallet service: what a payer's program asks of its balance. An ASGI app, mountable at any prefix.

    GET  /                       what is accepted, and where
    POST /top-up                 {"amount_usdc": "1.00"}: paid by x402, credited to who paid (credit.py)
    GET  /balance/{wallet}       with the wallet's proof
    GET  /transactions/{wallet}  with the wallet's proof; ?limit= and ?cursor=, newest first
    POST /withdraw               the unused balance back to its wallet; off unless the seller turns it on

Amounts are decimal text of whole units, exact. The shapes are Katana's (services it is meant to be exchanged with).
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from ..errors import BadRequest, ConfigError, PaymentUsed, ServerError
from ..ledger.port import Store
from ..model import Claim, Entry
from ..money import Asset, Usd, format_units, parse_units, usd
from ..networks.port import Rail
from ..paywall.balances import Balances
from ..paywall.proofs import Proven
from ..paywall.resource import Resource
from ..pricing import Call, Quote
from ..protocols.encoding import dump_json, parse_object
from ..protocols.siwx import find_proof
from . import answers
from .answers import Answer
from .call import PaidCall
from .marks import mark

__all__ = ["TopUp", "WalletService"]

PAGE_MAX: Final = 100
_PAGE: Final = 50
_BODY_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class TopUp:
    """What a top-up may be, and its price: the amount that the body asks for."""

    minimum: Usd
    maximum: Usd
    needs_body: bool = field(default=True, init=False)
    metered: bool = field(default=False, init=False)

    def amount(self, body: bytes) -> Usd:
        """The amount that a body asks for. Raises ``BadRequest``."""
        try:
            text = parse_object(body).get("amount_usdc")
            units = parse_units(text, 6)
        except ValueError as e:
            raise BadRequest("invalid_amount", detail='the body is {"amount_usdc": "1.00"}') from e
        wanted = Usd(Decimal(units).scaleb(-6))
        if not self.minimum <= wanted <= self.maximum:
            raise BadRequest("amount_out_of_range", detail=f"from {self.minimum} to {self.maximum}")
        return wanted

    def canonical(self, body: bytes) -> bytes:
        """What of a body binds the payment: the amount, however it is written."""
        return self.words(self.amount(body))

    @staticmethod
    def words(amount: Usd) -> bytes:
        """An amount, spelled in one way."""
        return f"top-up {amount.value.normalize():f}".encode()

    def at_least(self, units: int, decimals: int) -> Usd:
        """What brings so many atomic units to a balance, within what may be topped up at once."""
        return min(max(Usd(Decimal(units).scaleb(-decimals)), self.minimum), self.maximum)

    async def quote(self, call: Call) -> Quote:
        return Quote(self.amount(call.body), "Top-up of the prepaid balance")


class Bank(Protocol):
    """What the service needs of the paywall that it belongs to."""

    origin: str
    service: str
    rails: tuple[Rail, ...]
    store: Store
    balances: Balances

    def sign_in(self, url: str) -> Answer:
        """The 402 of a place that takes a proof alone: no offers, and the proof's challenge."""
        ...

    async def withdraw(self, proven: Proven, amount: int | None) -> Claim:
        """Send balance back to its wallet."""
        ...


class WalletService:
    """Made by ``Paywall.wallet_service``."""

    def __init__(self, bank: Bank, *, minimum: str, maximum: str, withdraw: bool) -> None:
        self._bank = bank
        self.price = TopUp(usd(minimum), usd(maximum))
        if not Decimal(0) < self.price.minimum.value <= self.price.maximum.value:
            raise ConfigError("a top-up's minimum is above zero and not above its maximum")
        self.resource = Resource(
            "x402kit.top-up",
            self.price,
            description="Top-up of the prepaid balance",
            mime_type="application/json",
            body_limit=_BODY_MAX,
            credits=True,
            canonical=self.price.canonical,
        )
        self.withdraws = withdraw
        routes = [
            Route("/", _guarded(self.discovery)),
            Route("/top-up", mark(_guarded(self.top_up), self.resource), methods=["POST"]),
            Route("/balance/{wallet}", _guarded(self.balance)),
            Route("/transactions/{wallet}", _guarded(self.transactions)),
        ]
        if withdraw:
            routes.append(Route("/withdraw", _guarded(self.withdraw), methods=["POST"]))
        self.router = Router(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.router(scope, receive, send)

    async def discovery(self, request: Request) -> Response:
        bank, base = self._bank, str(request.scope.get("root_path", ""))
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
        return _json(
            {
                "x402Version": 2,
                "service": bank.service,
                "networks": networks,
                "endpoints": {name: f"{bank.origin}{base}/{path}" for name, path in endpoints.items()},
                "minimum_top_up_usdc": f"{self.price.minimum.value:f}",
                "maximum_top_up_usdc": f"{self.price.maximum.value:f}",
                "proof_headers": ["SIGN-IN-WITH-X", "X-Sign-In-With-X"],
            }
        )

    async def top_up(self, request: Request) -> Response:
        """Runs for a top-up that is credited, as often as it is asked for: all of it comes from the entry."""
        paid: PaidCall = request.scope["x402kit"]
        assert paid.entry is not None
        entry, asset = paid.entry, self._asset(paid.network)
        return _json(
            {
                "wallet_address": paid.payer,
                "network": paid.network,
                "asset": asset.address,
                "credited_usdc": format_units(entry.available, asset.decimals),
                "paid_usdc": format_units(-entry.external, asset.decimals),
                "balance_usdc": format_units(entry.balance, asset.decimals),
                "transaction": entry.reference,
                "transaction_id": str(entry.id),
            }
        )

    async def balance(self, request: Request) -> Response:
        proven = await self._proven(request)
        account, asset = self._bank.balances.account(proven), self._asset(proven.network)
        found = await self._bank.store.balance(account)
        return _json(
            {
                "wallet_address": proven.address,
                "network": proven.network,
                "asset": asset.address,
                "balance_usdc": format_units(found.available, asset.decimals),
                "held_usdc": format_units(found.held, asset.decimals),
            }
        )

    async def transactions(self, request: Request) -> Response:
        proven = await self._proven(request)
        limit = _number(request, "limit", _PAGE, PAGE_MAX)
        before = _number(request, "cursor", 0, 2**63 - 1) or None
        account, asset = self._bank.balances.account(proven), self._asset(proven.network)
        found = await self._bank.store.entries(account, before, limit + 1)
        page = found[:limit]
        return _json(
            {
                "wallet_address": proven.address,
                "network": proven.network,
                "asset": asset.address,
                "transactions": [transaction(entry, asset.decimals) for entry in page],
                "next_cursor": str(page[-1].id) if len(found) > limit else None,
            }
        )

    async def withdraw(self, request: Request) -> Response:
        proven = await self._proven(request, fresh=True, wallet=False)
        asset = self._asset(proven.network)
        body = await request.body()
        text = _field(body, "amount_usdc") if body else None
        try:
            amount = None if text is None else parse_units(text, asset.decimals)
        except ValueError as e:
            raise BadRequest("invalid_amount") from e
        payout = await self._bank.withdraw(proven, amount)
        return _json(
            {
                "wallet_address": proven.address,
                "network": proven.network,
                "asset": asset.address,
                "withdrawn_usdc": format_units(payout.amount, asset.decimals),
                "state": payout.state,
                "transaction": payout.reference,
            },
            200 if payout.state == "settled" else 202,
        )

    async def _proven(self, request: Request, *, fresh: bool = False, wallet: bool = True) -> Proven:
        """Who asks: the wallet of the path, proved. Raises ``SignIn`` without a proof, ``NotYours`` for another's."""
        raw = find_proof(request.scope["headers"])
        if raw is None:
            raise SignIn(self._bank.sign_in(str(request.url.path)))
        proven = await self._bank.balances.proofs.verify(raw, fresh=fresh)
        asked = request.path_params.get("wallet", proven.address)
        same = asked.lower() == proven.address.lower() if proven.network.startswith("eip155:") else False
        if wallet and asked != proven.address and not same:
            raise NotYours()
        return proven

    def _asset(self, network: str) -> Asset:
        return self._bank.balances.assets[network]


class SignIn(Exception):  # an answer, on its way out of an endpoint
    """A proof is asked for."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer


class NotYours(PaymentUsed):
    """The proof is good, and another wallet's."""

    code, money = "wallet-mismatch", "no"
    hint = "The proof is of another wallet."


def transaction(entry: Entry, decimals: int) -> dict[str, Any]:
    """One move of the account as its owner sees it: signed amounts that sum up to the balance."""
    shown: dict[str, Any] = {
        "id": str(entry.id),
        "type": entry.type,
        "amount_usdc": format_units(entry.available, decimals),
        "balance_after_usdc": format_units(entry.balance, decimals),
        "created_at": datetime.datetime.fromtimestamp(entry.at, datetime.UTC).isoformat().replace("+00:00", "Z"),
        "request_id": entry.request_id or None,
        "resource": entry.resource or None,
        "transaction": entry.reference or None,
    }
    if entry.revenue:
        shown["charged_usdc"] = format_units(entry.revenue, decimals)
    return shown


def _guarded(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Any]]:
    """Typed errors become answers here: the service may stand in an app that knows nothing of them."""

    @functools.wraps(endpoint)
    async def guarded(request: Request) -> Any:
        try:
            return await endpoint(request)
        except SignIn as e:
            return e.answer
        except ServerError as e:
            return answers.problem(e)

    return guarded


def _json(document: dict[str, Any], status: int = 200) -> Response:
    return Response(dump_json(document), status, {"cache-control": "no-store"}, "application/json")


def _field(body: bytes, name: str) -> Any:
    try:
        return parse_object(body).get(name)
    except ValueError as e:
        raise BadRequest("invalid_json") from e


def _number(request: Request, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 19 or not 1 <= int(text) <= most:
        raise BadRequest(f"invalid_{name}")
    return int(text)
