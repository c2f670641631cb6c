"""From an authorization to a broadcast transaction, and no gap in the wallet's nonces afterwards.

A nonce that is taken and never used blocks every later one. Three things keep that from happening: a settlement that
the node certainly refused gives its nonce back, or, where later ones are on their way already, has it used up by an
empty transfer to ourselves; a dropped one is sent again as it is; and one that outlived its authorization is replaced
by such an empty transfer, at fees of that day, before its claim may end (evm_outcome.py's ``gap``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from ..errors import RailUnavailable
from ..model import Intent, Outcome
from .evm import keccak
from .evm_abi import Transaction, parse_transaction
from .evm_fees import Fees
from .evm_reads import Chain, hex_data
from .evm_wallet import Wallet
from .port import Nonces
from .rpc import RpcRefused, RpcTrouble

log = logging.getLogger("x402kit.evm")

__all__ = ["Sender"]

_FLOOR_SECONDS: Final = 30.0
_FILLER_GAS: Final = 60_000
"""An empty transfer uses 21 000; some L2s count their L1 data in."""
_FRESH_MAX: Final = 10_000

_SEEN: Final = ("already", "known transaction", "nonce too low", "nonce is too low", "oldnonce")
"""The node has it, or had it: look at the chain. Gateways that repeat calls by themselves answer so after a success."""
_NEVER: Final = (
    "insufficient funds",
    "insufficient balance",
    "underpriced",
    "intrinsic gas",
    "less than block base fee",
    "fee cap",
    "fee too low",
    "gas limit",
    "nonce too high",
    "pool is full",
    "txpool full",
    "chain id",
    "invalid sender",
    "invalid signature",
    "configured cap",
)
"""The node refused it at its door: it is in no pool."""


class Sender:
    """Sends from one wallet."""

    def __init__(
        self,
        chain: Chain,
        wallet: Wallet,
        fees: Fees,
        chain_id: int,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._chain, self._wallet, self._fees, self._chain_id = chain, wallet, fees, chain_id
        self._monotonic = monotonic
        self._floor: int | None = None
        self._floor_until = 0.0
        self._fresh: dict[str, None] = {}
        self._open: set[int] = set()

    @property
    def wallet_id(self) -> str:
        """The wallet as the nonce allocator knows it."""
        return f"{self._chain_id}:{self._wallet.address}"

    async def prepare(
        self, to: str, data: bytes, gas: int, payment_id: str, nonces: Nonces, *, offer: int = 0
    ) -> Intent:
        """A signed transaction, not sent. ``RailUnavailable``; the nonce is given back then.

        ``offer``: wei for a unit of gas, to be offered where it is more than the price of now; never above the cap.
        """
        price = await self._fees.price()
        floor = await self._pending_count()
        nonce = await nonces.take_nonce(self.wallet_id, payment_id, floor)
        try:
            most = max(price.max_fee, min(offer, self._fees.cap))
            transaction = Transaction(self._chain_id, nonce, price.tip, most, gas, to, data)
            raw = await self._wallet.sign(transaction)
        except BaseException:  # a cancelled task must give it back too
            await nonces.free_nonce(self.wallet_id, nonce)
            raise
        reference = hex_data(keccak(raw))
        while len(self._fresh) >= _FRESH_MAX:
            del self._fresh[next(iter(self._fresh))]
        self._fresh[reference] = None
        self._open.add(nonce)
        return Intent(reference, raw, self.wallet_id, nonce)

    async def send(self, intent: Intent) -> Outcome:
        """Broadcast. Failed only where this process made it, never tried to send it before, and the node refused it."""
        fresh = intent.reference in self._fresh
        self._fresh.pop(intent.reference, None)
        try:
            await self._chain.send(intent.blob)
        except RpcTrouble as e:
            self.forget()
            if fresh and not e.sent:
                return Outcome("failed", "unexpected_settle_error", never_sent=True)
            return Outcome("pending", str(e), intent.reference)
        except RpcRefused as e:
            self.forget()
            if fresh and e.alone and _is_never(e.text):
                return Outcome("failed", "transaction_failed", never_sent=True)
            log.warning("broadcast of %s: %s", intent.reference, e)
            return Outcome("pending", str(e), intent.reference)
        return Outcome("pending", reference=intent.reference)

    async def discard(self, intent: Intent, nonces: Nonces) -> None:
        """Release the nonce of something that was never broadcast: free, or used up where later ones wait for it."""
        self._fresh.pop(intent.reference, None)
        self._open.discard(intent.nonce)
        self.forget()
        if intent.nonce < 0:
            return
        if self._open and max(self._open) > intent.nonce and await self._fill(intent.nonce, None):
            return
        await nonces.free_nonce(intent.wallet, intent.nonce)

    async def close_gap(self, nonce: int, blob: bytes) -> bool:
        """Use up a nonce whose transaction can move nothing any more. Whether the node has taken it, or it was used."""
        try:
            old, _ = parse_transaction(blob)
        except ValueError:
            old = None
        return await self._fill(nonce, old)

    def forget(self) -> None:
        """Read the chain's count and fees anew next time: something was refused."""
        self._floor = None
        self._fees.forget()

    async def _fill(self, nonce: int, old: Transaction | None) -> bool:
        try:
            price = await self._fees.price()
            tip, most = price.tip, price.max_fee
            if old is not None:  # a pool takes a replacement only for a tenth more
                tip, most = max(tip, old.tip * 9 // 8 + 1), max(most, old.max_fee * 9 // 8 + 1)
            filler = Transaction(self._chain_id, nonce, min(tip, most), most, _FILLER_GAS, self._wallet.address, b"")
            await self._chain.send(await self._wallet.sign(filler))
        except RpcRefused as e:
            return any(words in e.text for words in _SEEN)
        except (RpcTrouble, RailUnavailable):
            return False
        return True

    async def _pending_count(self) -> int:
        if self._floor is None or self._monotonic() >= self._floor_until:
            try:
                floor = await self._chain.transaction_count(self._wallet.address, "pending")
            except (RpcTrouble, RpcRefused) as e:
                raise RailUnavailable(detail="the wallet's nonce is unreadable") from e
            self._floor, self._floor_until = floor, self._monotonic() + _FLOOR_SECONDS
            self._open = {nonce for nonce in self._open if nonce >= floor}
            return floor
        return self._floor


def _is_never(text: str) -> bool:
    return any(words in text for words in _NEVER) and not any(words in text for words in _SEEN)
