"""What was paid to a recipient, by the chain alone: for a ledger that lost its last commits (J05), and for a payment
whose signature only a facilitator knows.

A payment is a transaction of the shape that svm.py reads, with our fee payer in front, whose one transfer brought the
recipient's token account what it says. Other transfers to the recipient are nobody's payment.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator

from ..errors import RailUnavailable
from ..model import Claim, Json
from ..money import MAX_AMOUNT
from .port import Landed
from .rpc import RpcRefused, RpcTrouble
from .svm import payment_id
from .svm_outcome import received
from .svm_reads import Node
from .svm_transaction import Transaction, address_bytes, address_text, decode, find_transfer, token_account

__all__ = ["Scan"]

_PAGE: int = 1000
_CLOCK_SECONDS: int = 300
"""By how much a block's time may be before our own."""


class Scan:
    """Reads the transactions of one recipient's token account."""

    def __init__(self, node: Node, network: str, mint: str, pay_to: str, program: bytes) -> None:
        self._node, self._network, self._mint, self._pay_to, self._program = node, network, mint, pay_to, program
        self._account = address_text(token_account(address_bytes(pay_to), address_bytes(mint), program))

    async def head(self) -> int:
        """The newest slot that is confirmed. Raises ``RailUnavailable``."""
        try:
            return await self._node.confirmed_slot()
        except (RpcTrouble, RpcRefused) as e:
            raise RailUnavailable(detail=str(e)) from e

    async def since(self, slot: int, fee_payer: str) -> AsyncGenerator[Landed]:
        """Every payment from ``slot`` on, oldest first. Raises ``RailUnavailable``."""
        try:
            seen = [each async for each in self._signatures(since_slot=slot)]
            for each in reversed(seen):
                found = await self._node.transaction(str(each["signature"]))
                landed = None if found is None else self._landed(str(each["signature"]), found, fee_payer)
                if landed is not None:
                    yield landed
        except (RpcTrouble, RpcRefused, KeyError, TypeError, ValueError) as e:
            raise RailUnavailable(detail=str(e)) from e

    async def signature_of(self, claim: Claim) -> str:
        """The signature with which a claim's message has landed, or an empty text. Raises what the calls raise."""
        async for each in self._signatures(since_time=claim.created_at - _CLOCK_SECONDS):
            found = await self._node.transaction(str(each["signature"]))
            transaction = None if found is None else _read(found)
            if transaction is not None and payment_id(self._network, transaction.message) == claim.payment_id:
                return str(each["signature"])
        return ""

    async def _signatures(self, *, since_slot: int = 0, since_time: int = 0) -> AsyncGenerator[Json]:
        """Newest first; those that failed are left out."""
        before = ""
        while True:
            page = await self._node.signatures(self._account, before=before, limit=_PAGE)
            for each in page:
                if each["slot"] < since_slot or (each.get("blockTime") or since_time) < since_time:
                    return
                if each.get("err") is None:
                    yield each
            if len(page) < _PAGE:
                return
            before = str(page[-1]["signature"])

    def _landed(self, signature: str, found: Json, fee_payer: str) -> Landed | None:
        transaction = _read(found)
        if transaction is None or address_text(transaction.keys[0]) != fee_payer:
            return None
        transfer = find_transfer(transaction.instructions)
        if transfer is None or transfer.amount > MAX_AMOUNT:
            return None
        name, payer = payment_id(self._network, transaction.message), address_text(transfer.authority)
        at: int = found.get("blockTime") or 0
        claim = _claim(name, self._network, self._mint, self._pay_to, payer, transfer.amount)
        index = received(found, claim, self._program)
        if index < 0:
            return None
        return Landed(name, payer, transfer.amount, signature, found["slot"], "", index, at)


def _claim(name: str, network: str, mint: str, pay_to: str, payer: str, amount: int) -> Claim:
    return Claim(name, "sent", b"", b"", "", network, mint, pay_to, payer, amount, 0, 0, 0)


def _read(found: Json) -> Transaction | None:
    try:
        return decode(base64.b64decode(found["transaction"][0], validate=True))
    except (ValueError, KeyError, TypeError, IndexError):
        return None
