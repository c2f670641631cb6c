"""A wallet service as its customer sees it, without I/O: top up, look at the balance, have the rest back.

Each operation is a generator that gives a request and is given its answer; prepaid.py drives it, synchronously or not.
The requests go through the payer's own transport, which pays the top-up and shows the wallet's proof to the rest, so
what core.py and balance.py promise of lost answers holds here too. Shapes: Katana's (wire.md 1.6 row 22), as its
documents and our own service (asgi/wallet.py) write them; Venice's wrapper around them is taken off.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar
from urllib.parse import quote

from ..errors import ConfigError, WalletServiceError
from ..model import Json
from ..money import Asset, parse_units, usd
from ..protocols.encoding import parse_object
from .policy import MICRO
from .receipts import PaymentInfo

__all__ = [
    "Operations",
    "Page",
    "Reply",
    "Request",
    "TopUp",
    "Transaction",
    "WalletBalance",
    "WalletInfo",
    "Withdrawal",
]

T = TypeVar("T")
Steps = Generator["Request", "Reply", T]

PAGE: Final = 100
_USDC_DECIMALS: Final = 6
_AMOUNT: Final = re.compile(r"\$?((?:0|[1-9][0-9]{0,11})(?:\.[0-9]{1,6})?)\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Request:
    """``path`` below the service's own; ``top_up`` is the most that a paid one may cost, in micros."""

    method: str
    path: str = ""
    body: Json | None = None
    proves: bool = False
    top_up: int | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer, and what was paid for it."""

    status: int
    body: bytes
    payment: PaymentInfo | None = None


@dataclass(frozen=True, slots=True)
class WalletInfo:
    """What a service says of itself: CAIP-2 networks, and the bounds of a top-up in atomic units of USDC."""

    service: str
    networks: tuple[str, ...]
    minimum: int | None
    maximum: int | None
    raw: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class TopUp:
    """Amounts in atomic units. ``paid`` may be above ``credited`` by what the settlement cost. ``problem`` says what
    does not agree with what was asked for and signed; the money has moved all the same.
    """

    wallet: str
    network: str
    asset: str
    credited: int
    paid: int
    balance: int
    transaction: str
    payment: PaymentInfo | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class WalletBalance:
    """In atomic units: what can be spent, and what is held for calls under way."""

    wallet: str
    network: str
    asset: str
    available: int
    held: int


@dataclass(frozen=True, slots=True)
class Transaction:
    """One move of the account. ``amount`` in atomic units, negative for what went out; ``charged`` is what a call cost
    in the end, where the service says so. ``transaction`` is the chain's, where there is one.
    """

    id: str
    type: str
    amount: int
    balance_after: int
    created_at: str
    request_id: str = ""
    resource: str = ""
    transaction: str = ""
    charged: int | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Transactions, newest first, and where the next ones begin; empty at the end."""

    transactions: tuple[Transaction, ...]
    cursor: str


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """``amount`` in atomic units on its way back to the wallet; it has arrived when ``state`` is ``settled``."""

    wallet: str
    network: str
    asset: str
    amount: int
    state: str
    transaction: str


class Operations:
    """The operations for one wallet. ``known`` are the assets whose decimals we know (M05).

    ``network``: ``Target.network`` of its requests; a payer's two wallets have balances of their own.
    """

    def __init__(self, wallet: str, known: Mapping[tuple[str, str], Asset], network: str = "") -> None:
        self._wallet, self._known, self.network = wallet, known, network

    def info(self) -> Steps[WalletInfo]:
        said = _read((yield Request("GET")))
        networks = tuple(_text(entry, "network") for entry in _objects(said, "networks") or ())
        least, most = (_units_or_none(said, f"{which}_top_up_usdc") for which in ("minimum", "maximum"))
        return WalletInfo(_text(said, "service"), networks, least, most, said)

    def top_up(self, amount: str, gas: str) -> Steps[TopUp]:
        text, wanted = _amount(amount)
        most = wanted * 10 ** (MICRO - _USDC_DECIMALS) + usd(gas).atomic(MICRO)
        reply = yield Request("POST", "/top-up", {"amount_usdc": text}, top_up=most)
        said = _read(reply)
        decimals = self._decimals(said)
        made = TopUp(
            _text(said, "wallet_address"),
            _text(said, "network"),
            _text(said, "asset"),
            _units(said, "credited_usdc", decimals),
            _units(said, "paid_usdc", decimals),
            _units(said, "balance_usdc", decimals),
            _text(said, "transaction"),
            reply.payment,
        )
        problem = self._problem(made, _units({"": text}, "", decimals))
        return replace(made, problem=problem) if problem else made

    def _problem(self, made: TopUp, wanted: int) -> str:
        if made.wallet.lower() != self._wallet.lower():
            return "another wallet was credited"
        if made.credited < wanted:
            return "less was credited than was asked for"
        if made.payment is not None and made.paid != made.payment.amount:
            return "the service says that another amount was paid than was signed"
        return made.payment.problem if made.payment is not None else ""

    def balance(self) -> Steps[WalletBalance]:
        said = _read((yield Request("GET", f"/balance/{quote(self._wallet)}", proves=True)))
        decimals = self._decimals(said)
        held = _units(said, "held_usdc", decimals) if said.get("held_usdc") is not None else 0
        place = (_text(said, "wallet_address"), _text(said, "network"), _text(said, "asset"))
        return WalletBalance(*place, _units(said, "balance_usdc", decimals), held)

    def page(self, cursor: str, limit: int) -> Steps[Page]:
        query = f"?limit={limit}" + (f"&cursor={quote(cursor, safe='')}" if cursor else "")
        said = _read((yield Request("GET", f"/transactions/{quote(self._wallet)}{query}", proves=True)))
        decimals, found = self._decimals(said), _objects(said, "transactions")
        if found is None:
            raise WalletServiceError("the wallet service gave no list of transactions", status=200)
        return Page(tuple(_transaction(entry, decimals) for entry in found), _text(said, "next_cursor"))

    def withdraw(self, amount: str | None) -> Steps[Withdrawal]:
        body = {} if amount is None else {"amount_usdc": _amount(amount)[0]}
        said = _read((yield Request("POST", "/withdraw", body, proves=True)))
        made = Withdrawal(
            _text(said, "wallet_address"),
            _text(said, "network"),
            _text(said, "asset"),
            _units(said, "withdrawn_usdc", self._decimals(said)),
            _text(said, "state"),
            _text(said, "transaction"),
        )
        if made.state == "failed":
            raise WalletServiceError("the withdrawal failed; its amount is on the balance", status=200, code="failed")
        return made

    def _decimals(self, said: Json) -> int:
        """Of the asset that an answer names; fields named after USDC have six where it names none."""
        network, asset = _text(said, "network"), _text(said, "asset")
        if not asset:
            return _USDC_DECIMALS
        known = self._known.get((network, asset.lower()))
        if known is None:
            raise WalletServiceError(f"the wallet service counts in an asset that is not known: {asset} on {network}")
        return known.decimals


def _amount(text: str) -> tuple[str, int]:
    """Dollars such as ``"1.00"``, as they are sent, and in atomic units of USDC. Raises ``ConfigError``."""
    found = _AMOUNT.match(text)
    units = parse_units(found[1], _USDC_DECIMALS) if found else 0
    if found is None or units == 0:
        raise ConfigError(f'an amount is written like "1.00", not {text!r}')
    return found[1], units


def _read(reply: Reply) -> Json:
    """An answer's object, without Venice's wrapper. Raises ``WalletServiceError`` for any that is not good."""
    try:
        said = parse_object(reply.body, floats=True)
    except ValueError:
        said = None
    if reply.status not in (200, 201, 202) or said is None:
        raise _refused(reply, said or {})
    data = said.get("data")
    return data if isinstance(data, dict) and "success" in said else said  # pyright: ignore[reportUnknownVariableType]  # JSON


def _refused(reply: Reply, said: Json) -> WalletServiceError:
    code = _text(said, "title") or _text(said, "code") or _text(said, "error")
    reason = _text(said, "reason") or _text(said, "message")
    told = ": ".join(dict.fromkeys(each for each in (code, reason) if each)) or "it gave no reason that can be read"
    detail = _text(said, "detail")
    told = f"{told} ({detail})" if detail else told
    plain = "".join(char for char in told[:300] if char.isprintable())
    text = f"the wallet service answered {reply.status}: {plain}"
    return WalletServiceError(text, status=reply.status, code=code, reason=reason)


def _transaction(said: Json, decimals: int) -> Transaction:
    return Transaction(
        _text(said, "id"),
        _text(said, "type"),
        _units(said, "amount_usdc", decimals),
        _units(said, "balance_after_usdc", decimals),
        _text(said, "created_at"),
        _text(said, "request_id"),
        _text(said, "resource"),
        _text(said, "transaction"),
        _units(said, "charged_usdc", decimals) if said.get("charged_usdc") is not None else None,
    )


def _objects(said: Mapping[str, Any], name: str) -> list[Json] | None:
    """The objects in a list; None where there is no list."""
    found = said.get(name)
    if not isinstance(found, list):
        return None
    return [entry for entry in found if isinstance(entry, dict)]  # pyright: ignore[reportUnknownVariableType]  # JSON


def _text(said: Mapping[str, Any], name: str) -> str:
    value = said.get(name)
    return value if isinstance(value, str) else ""


def _units(said: Mapping[str, Any], name: str, decimals: int) -> int:
    text = _text(said, name)
    try:
        return -parse_units(text[1:], decimals) if text.startswith("-") else parse_units(text, decimals)
    except ValueError as e:
        raise WalletServiceError(f"the wallet service's {name} is no amount: {text[:40]!r}") from e


def _units_or_none(said: Mapping[str, Any], name: str) -> int | None:
    return None if said.get(name) is None else _units(said, name, _USDC_DECIMALS)
