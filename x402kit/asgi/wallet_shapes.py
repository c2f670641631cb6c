"""How a wallet service says what it says. This is the shape of Katana's documents: plain fields, amounts as text.

Venice's is in wallet_venice.py. Both say the same, of the same ledger; a shape decides nothing about money.
"""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

from starlette.requests import Request

from ..errors import BadRequest, InsufficientBalance, PaymentRefused, ServerError
from ..model import Balance, Claim, Entry, Json
from ..money import Asset, format_units
from ..paywall.challenge import Challenge
from ..protocols.encoding import dump_json
from . import answers
from .answers import Answer
from .wallet_price import TopUp

__all__ = ["Entries", "Katana", "Shape", "Where", "json_answer", "number", "time_text"]

PAGE_MAX: Final = 100
PAGE: Final = 50

Entries = Callable[[int | None, int], Awaitable[list[Entry]]]
"""An account's entries before an id, so many at the most: newest first."""


class Where(NamedTuple):
    """Whose balance of what. ``wallet`` as it is compared."""

    wallet: str
    network: str
    asset: Asset

    @property
    def shown(self) -> str:
        """The wallet as everybody writes it: EIP-55 for EVM."""
        if not self.network.startswith("eip155:"):
            return self.wallet
        from ..networks.evm import checksum  # a rail's module is loaded when it is needed

        return checksum(self.wallet)

    def units(self, amount: int) -> str:
        return format_units(amount, self.asset.decimals)


class Shape(Protocol):
    """What differs between the services that we stand in for."""

    name: str
    any_amount: bool
    """Whether a top-up's payment brings the amount that its payer chose."""

    def challenge(self, made: Challenge, error: PaymentRefused | None, place: str) -> Answer:
        """402 of a priced route or a top-up; ``place`` is the service's URL."""
        ...

    def shortfall(self, made: Challenge, error: InsufficientBalance, price: TopUp, asset: Asset, place: str) -> Answer:
        """402 of a call that its balance can't pay; ``made`` offers the top-up."""
        ...

    def problem(self, error: ServerError, *, top_up: bool = False) -> Answer: ...

    def topped_up(self, where: Where, entry: Entry) -> Answer: ...

    def balance(self, where: Where, found: Balance, price: TopUp) -> Answer: ...

    async def transactions(self, request: Request, where: Where, balance: Balance, entries: Entries) -> Answer: ...

    def withdrawal(self, where: Where, payout: Claim) -> Answer: ...


class Katana:
    """wire.md 1.6, row 22."""

    name = "katana"
    any_amount = False

    def challenge(self, made: Challenge, error: PaymentRefused | None, place: str) -> Answer:
        return answers.challenge(made, error)

    def shortfall(self, made: Challenge, error: InsufficientBalance, price: TopUp, asset: Asset, place: str) -> Answer:
        return answers.challenge(made)

    def problem(self, error: ServerError, *, top_up: bool = False) -> Answer:
        return answers.problem(error)

    def topped_up(self, where: Where, entry: Entry) -> Answer:
        return json_answer(
            {
                **_place(where),
                "credited_usdc": where.units(entry.available),
                "paid_usdc": where.units(-entry.external),
                "balance_usdc": where.units(entry.balance),
                "transaction": entry.reference,
                "transaction_id": str(entry.id),
            }
        )

    def balance(self, where: Where, found: Balance, price: TopUp) -> Answer:
        amounts = {"balance_usdc": where.units(found.available), "held_usdc": where.units(found.held)}
        return json_answer({**_place(where), **amounts})

    async def transactions(self, request: Request, where: Where, balance: Balance, entries: Entries) -> Answer:
        """Pages by a cursor: what comes meanwhile does not shift them."""
        limit = number(request, "limit", PAGE, 1, PAGE_MAX)
        before = number(request, "cursor", 0, 1, 2**63 - 1) or None
        found = await entries(before, limit + 1)
        page = found[:limit]
        return json_answer(
            {
                **_place(where),
                "transactions": [_transaction(entry, where) for entry in page],
                "next_cursor": str(page[-1].id) if len(found) > limit else None,
            }
        )

    def withdrawal(self, where: Where, payout: Claim) -> Answer:
        failed = payout.state == "failed"
        document = {
            **_place(where),
            "withdrawn_usdc": where.units(0 if failed else payout.amount),
            "state": payout.state,
            "transaction": payout.reference,
        }
        if failed:
            document["reason"] = payout.reason
        return json_answer(document, 200 if failed or payout.state == "settled" else 202)


def _place(where: Where) -> Json:
    return {"wallet_address": where.shown, "network": where.network, "asset": where.asset.address}


def _transaction(entry: Entry, where: Where) -> dict[str, Any]:
    """One move of the account as its owner sees it: signed amounts that sum up to the balance."""
    shown: dict[str, Any] = {
        "id": str(entry.id),
        "type": entry.type,
        "amount_usdc": where.units(entry.available),
        "balance_after_usdc": where.units(entry.balance),
        "created_at": time_text(entry.at),
        "request_id": entry.request_id or None,
        "resource": entry.resource or None,
        "transaction": entry.reference or None,
    }
    if entry.revenue:
        shown["charged_usdc"] = where.units(entry.revenue)
    return shown


def time_text(at: int) -> str:
    """Unix seconds as ISO 8601, UTC."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def json_answer(document: Mapping[str, Any] | bytes, status: int = 200) -> Answer:
    """JSON that no cache keeps."""
    body = document if isinstance(document, bytes) else dump_json(document)
    return Answer(status, [(b"content-type", b"application/json"), *answers.COMMON], body)


def number(request: Request, name: str, default: int, least: int, most: int) -> int:
    """A whole number of the query. Raises ``BadRequest``."""
    values = request.query_params.getlist(name)
    if not values:
        return default
    text = values[0]
    if len(values) > 1 or not text.isascii() or not text.isdigit() or len(text) > 19 or not least <= int(text) <= most:
        raise BadRequest(f"invalid_{name}", detail=f"from {least} to {most}")
    return int(text)
