"""The money of the demo's calls, as the payer sees it: each payment, each hold, and what became of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import httpx

from ..client import PaymentInfo, Proposal, payment_of
from ..model import Json
from ..money import Asset, format_units, parse_units
from .demo_rails import DemoRail, Transfer
from .output import dim
from .report import network_text

__all__ = ["ByPayment", "FromBalance", "money", "show_asked"]


def money(amount: int, asset: Asset) -> str:
    return f"{format_units(amount, asset.decimals)} {asset.symbol}"


def show_asked(proposal: Proposal) -> bool:
    """The payer's own word before it signs."""
    words = f"  {proposal.description}" if proposal.description else ""
    print(f"   402    asks {proposal.price} on {network_text(proposal.network)} to {proposal.pay_to}{dim(words)}")
    return True


class _Bill(NamedTuple):
    """What a call cost of the most that it could cost; the rest came back, or became balance. In atomic units."""

    reserved: int
    charged: int
    returned: int
    balance: int | None


def _bill(info: PaymentInfo, usage: Json | None, asset: Asset) -> _Bill:
    """From the answer's own words, for the head of a stream knows no cost; else from its receipt."""
    found: Any = (usage or {}).get("x402kit")
    if isinstance(found, dict):
        said: Json = found  # pyright: ignore[reportUnknownVariableType]  # JSON
        coin = asset.symbol.lower()
        names = (f"reserved_{coin}", f"charged_{coin}", f"refunded_{coin}")
        reserved, charged, returned = (parse_units(said.get(name), asset.decimals) for name in names)
        after = said.get(f"wallet_balance_after_{coin}")
        return _Bill(reserved, charged, returned, None if after is None else parse_units(after, asset.decimals))
    reserved = info.amount if info.reserved is None else info.reserved
    charged = reserved if info.charged is None else info.charged
    return _Bill(reserved, charged, reserved - charged if info.returned is None else info.returned, info.balance)


def _paid(answer: httpx.Response, source: str) -> PaymentInfo:
    info = payment_of(answer)
    if answer.status_code != 200 or info is None or not info.verified or info.source != source:
        answer.read()
        problem = info.problem or f"by {info.source}" if info else "not paid"
        raise ValueError(f"status {answer.status_code}, {problem}: {answer.text[:500]}")
    return info


class ByPayment:
    """A payment for each call; what a call did not use becomes balance."""

    def __init__(self, rail: DemoRail) -> None:
        self.paid: list[tuple[PaymentInfo, Transfer]] = []
        self.charged = 0
        self.left = 0
        self._rail = rail

    def begin(self, answer: httpx.Response) -> None:
        self.settled(_paid(answer, "payment"))

    def settled(self, info: PaymentInfo) -> None:
        """Show what the chain has of it. Raises ``DevnetError`` where it has nothing."""
        transfer = self._rail.transfer(info.transaction)
        self.paid.append((info, transfer))
        amount = money(transfer.amount, self._rail.asset)
        where = f"in block {transfer.block}, transaction" if transfer.block else "over the channel, payment hash"
        print(f"   paid   {amount} {where} {transfer.transaction}")

    def end(self, answer: httpx.Response, usage: Json | None) -> None:
        info, asset = self.paid[-1][0], self._rail.asset
        bill = _bill(info, usage, asset)
        if bill.charged + bill.returned != info.amount:
            raise ValueError(f"{info.amount} were paid, {bill.charged} charged and {bill.returned} kept as balance")
        self.charged += bill.charged
        self.left += bill.returned
        print(f"   cost   {money(bill.charged, asset)}, {money(bill.returned, asset)} became balance")


class FromBalance:
    """A wallet proof for each call. The most that it can cost is held, and what it did not use comes back."""

    def __init__(self, asset: Asset, balance: int) -> None:
        self.charged = 0
        self._asset = asset
        self._balance = balance

    def begin(self, answer: httpx.Response) -> None:
        info = _paid(answer, "balance")
        if info.reserved is None:
            raise ValueError("the answer does not say what was held for it")
        print(f"   proof  of {info.payer}; {money(info.reserved, self._asset)} held")

    def end(self, answer: httpx.Response, usage: Json | None) -> None:
        bill = _bill(_paid(answer, "balance"), usage, self._asset)
        self._balance -= bill.charged
        if bill.reserved != bill.charged + bill.returned or bill.balance != self._balance:
            raise ValueError(f"the balance should be {self._balance} after {bill}")
        self.charged += bill.charged
        cost, back, left = (money(amount, self._asset) for amount in (bill.charged, bill.returned, self._balance))
        print(f"   cost   {cost}, {back} came back, balance {left}")
