"""From a payer's transaction to a sent one: simulate, co-sign, broadcast. Nothing is sent before ``send``.

What is simulated has no signature of ours, so that whoever sees it (a node, its provider) can't send it: the claim is
durable before anything can land (I8). Our signature is deterministic and names the transaction, so it is stored first.
"""

from __future__ import annotations

import asyncio
from typing import Final

from ..errors import PaymentRefused, PaymentUsed, RailUnavailable
from ..model import Intent, Outcome
from .rpc import RpcRefused, RpcTrouble
from .svm_outcome import FAILED, Sent
from .svm_reads import Node, Simulated
from .svm_transaction import Transaction, signature_text
from .svm_wallet import SvmWallet

__all__ = ["LAG_BLOCKS", "Sender"]

LAG_BLOCKS: Final = 32
"""Blocks that one of a provider's nodes may be behind another."""
_VERIFY_SECONDS: Final = 5.0
_AGAIN_SECONDS: Final = 0.4
_FRESH_MAX: Final = 10_000


class Sender:
    """Sends what our wallet has co-signed."""

    def __init__(self, node: Node, wallet: SvmWallet, seconds: float) -> None:
        """``seconds``: time limit of a simulation, five at the most."""
        self.node, self.wallet = node, wallet
        self._seconds = min(seconds, _VERIFY_SECONDS)
        self._fresh: dict[str, None] = {}

    async def verify(self, transaction: Transaction) -> None:
        """Raises ``PaymentRefused``, ``PaymentUsed`` (it has landed already), ``RailUnavailable``."""
        found = await asyncio.gather(
            self._simulated(transaction.raw), self._landed(transaction.message), return_exceptions=True
        )
        for each in reversed(found):
            if isinstance(each, BaseException):
                raise each
        made = found[0]
        assert isinstance(made, Simulated)
        if made.error == "BlockhashNotFound":  # of a block that this node has yet to see, perhaps
            await asyncio.sleep(_AGAIN_SECONDS)
            made = await self._simulated(transaction.raw)
        if made.error == "AlreadyProcessed":
            raise PaymentUsed("duplicate_settlement")
        if made.error is not None:
            raise PaymentRefused(_reason(made.error), detail=str(made.error)[:200])

    async def _simulated(self, raw: bytes) -> Simulated:
        try:
            return await self.node.simulate(raw, self._seconds)
        except RpcTrouble as e:
            raise RailUnavailable(detail=str(e)) from e
        except RpcRefused as e:  # the node would not even look at it
            raise PaymentRefused("transaction_simulation_failed", detail=str(e)) from e

    async def _landed(self, message: bytes) -> None:
        """A message that has landed was paid with (B05): where the key is ours, its signature can be worked out."""
        if not self.wallet.is_local:
            return
        signature = signature_text(self.wallet.sign_local(message))
        try:
            status = await self.node.status(signature)
        except (RpcTrouble, RpcRefused) as e:
            raise RailUnavailable(detail=str(e)) from e
        if status.level >= 0 and status.error is None:
            raise PaymentUsed("duplicate_settlement", reference=signature)
        if status.level >= 0:
            raise PaymentRefused(FAILED, reference=signature)

    async def prepare(self, transaction: Transaction) -> Intent:
        """Co-sign; the reference is the transaction's signature. Raises ``RailUnavailable``."""
        try:
            latest = await self.node.latest()
        except (RpcTrouble, RpcRefused) as e:
            raise RailUnavailable(detail="the chain's height is unreadable") from e
        signature = await self.wallet.sign(transaction.message)
        # The payer's blockhash was good a moment ago, so it is no younger than the newest one, a lagging node aside.
        sent = Sent(latest.last_valid + LAG_BLOCKS, latest.slot, transaction.signed(signature))
        return self.remember(sent.intent(signature, self.wallet.address))

    def remember(self, intent: Intent) -> Intent:
        """It was made here, and nobody has tried to send it yet."""
        while len(self._fresh) >= _FRESH_MAX:
            del self._fresh[next(iter(self._fresh))]
        self._fresh[intent.reference] = None
        return intent

    def forget(self, intent: Intent) -> bool:
        """Whether it was remembered."""
        known = intent.reference in self._fresh
        self._fresh.pop(intent.reference, None)
        return known

    async def send(self, intent: Intent) -> Outcome:
        """Broadcast it, or the same bytes again. Failed only where our first try reached no node at all."""
        fresh = self.forget(intent)
        try:
            await self.node.send(Sent.of(intent.blob).raw)
        except RpcTrouble as e:
            if fresh and not e.sent:
                return Outcome("failed", "unexpected_settle_error", never_sent=True)
            return Outcome("pending", str(e), intent.reference)
        except RpcRefused as e:
            return Outcome("pending", str(e), intent.reference)
        return Outcome("pending", reference=intent.reference)


def _reason(error: object) -> str:
    """A published reason for a simulation's error: the token program's first is a balance that is too small."""
    match error:
        case {"InstructionError": [int(), {"Custom": 1}]}:
            return "insufficient_funds"
        case _:
            return "transaction_simulation_failed"
