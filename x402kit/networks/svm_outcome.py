"""What became of a settlement on Solana, by the chain alone. What is not certain is pending.

A price's confirmations say at which commitment a payment counts: 0 is ``confirmed`` (two thirds of the stake have voted
for its block), anything more is ``finalized``, and so are amounts from ``finalized_above`` on (D10). ``processed`` is
not to be had: a block that one node has seen may be on no fork that lives.

    the signature is in a block at that commitment, and
      it failed                                   failed: transaction_failed; it can't land a second time
      it succeeded, and the transaction as the chain has it is the one that was signed, and brought the recipient
      exactly the amount                          settled, final when finalized
      it succeeded without (B12)                  failed, spent, and the operator is told
      its transaction can't be read yet           pending
    it is in a block, not at that commitment      pending
    no node knows it, and
      finalized height is above the last at which its blockhash was good, and the history of the node, which has
      seen that height, reaches back to when it was sent
                                                  failed: transaction_expired; nothing can bring it back (D09)
      that history does not reach so far          pending, for the operator
      else                                        pending, to be sent again: the same bytes (I-07)
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from ..model import Claim, Intent, Json, Outcome
from .rpc import RpcRefused, RpcTrouble
from .svm_reads import Node, Status
from .svm_transaction import Transaction, address_bytes, decode, signature_text, token_account

log = logging.getLogger("x402kit.svm")

__all__ = ["EXPIRED", "FAILED", "MISMATCH", "Judge", "Sent", "agreed", "received"]

FAILED: Final = "transaction_failed"
EXPIRED: Final = "transaction_expired"
MISMATCH: Final = "invalid_exact_svm_transfer_mismatch"
CONFIRMED: Final = 1
FINALIZED: Final = 2


class Sent(NamedTuple):
    """What an intent's blob holds: all that is needed to send the same again, and to know when it can't land."""

    last_valid: int
    """The last block height at which the transaction can land, or later."""
    slot: int
    raw: bytes

    def intent(self, signature: bytes, wallet: str) -> Intent:
        blob = self.last_valid.to_bytes(8, "big") + self.slot.to_bytes(8, "big") + self.raw
        return Intent(signature_text(signature), blob, wallet)

    @classmethod
    def of(cls, blob: bytes) -> Sent:
        return cls(int.from_bytes(blob[:8], "big"), int.from_bytes(blob[8:16], "big"), blob[16:])


def agreed(outcomes: Sequence[Outcome], quorum: int, reference: str) -> Outcome:
    """What at least ``quorum`` of several nodes say alike, else pending (I-10)."""
    said = [(each.state, each.reference, each.block, each.reason) for each in outcomes]
    most, count = Counter(said).most_common(1)[0]
    if most[0] != "pending" and count >= quorum:
        alike = [each for each, what in zip(outcomes, said, strict=True) if what == most]
        return alike[0]._replace(final=all(each.final for each in alike))
    resend = all(each.resend for each in outcomes)
    return Outcome("pending", "" if resend else "the nodes do not agree", reference, resend=resend)


class Judge:
    """Reads through one node, or several as one. Sends nothing."""

    def __init__(self, node: Node, program: bytes, finalized_above: int) -> None:
        self._node, self._program, self._finalized_above = node, program, finalized_above

    @property
    def node(self) -> Node:
        return self._node

    async def judge(self, claim: Claim) -> Outcome:
        """The table above."""
        try:
            return await self.seen(claim) or await self._unseen(claim)
        except (RpcTrouble, RpcRefused) as e:
            return Outcome("pending", str(e), claim.reference)

    def wanted(self, claim: Claim) -> int:
        """The commitment at which it counts."""
        return FINALIZED if claim.confirmations or claim.amount >= self._finalized_above else CONFIRMED

    async def seen(self, claim: Claim) -> Outcome | None:
        """What a signature that is in a block comes to; None where no node knows it."""
        status: Status = await self._node.status(claim.reference)
        if status.level < 0:
            return None
        seen = Outcome("pending", reference=claim.reference, block=status.slot)
        if status.level < self.wanted(claim):
            return seen
        if status.error is not None:
            return Outcome("failed", FAILED, claim.reference)
        found = await self._node.transaction(claim.reference)
        if found is None:
            return seen._replace(reason="not to be read yet")
        index = received(found, claim, self._program)
        if index < 0:
            log.error(
                "ALERT: %s succeeded without the transfer of %d to %s", claim.reference, claim.amount, claim.pay_to
            )
            return Outcome("failed", MISMATCH, claim.reference, spent=True)
        return seen._replace(state="settled", log_index=index, final=status.is_finalized)

    async def _unseen(self, claim: Claim) -> Outcome:
        pending = Outcome("pending", reference=claim.reference)
        sent = Sent.of(claim.intent)
        height, slot = await self._node.finalized()
        if height <= sent.last_valid:
            return pending._replace(resend=True)
        # Looked for once more, in a history that has come as far as that height.
        status = await self._node.status(claim.reference)
        if status.level >= 0 or status.seen_at < slot:
            return pending._replace(reason="the node lags behind")
        if await self._node.first_slot() > sent.slot:
            log.error("ALERT: %s may have landed before the node's history begins; look at the chain", claim.reference)
            return pending._replace(reason="older than the node's history")
        return Outcome("failed", EXPIRED, claim.reference)


def received(found: Json, claim: Claim, program: bytes) -> int:
    """The index of the instruction that paid, in a transaction as ``Node.transaction`` gives it; -1 where none did.

    The chain's own balances before and after decide: what arrived is the amount exactly, whatever was sent (D05).
    """
    try:
        transaction = decode(base64.b64decode(found["transaction"][0], validate=True))
        meta: Json = found["meta"]
        if meta["err"] is not None or not _is_of(transaction, claim):
            return -1
        account = token_account(address_bytes(claim.pay_to), address_bytes(claim.asset), program)
        at = transaction.keys.index(account)
        gained = _balance(meta["postTokenBalances"], at, claim.asset) - _balance(
            meta["preTokenBalances"], at, claim.asset
        )
        if gained != claim.amount:
            return -1
        paid = (
            i for i, one in enumerate(transaction.instructions) if one.program == program and account in one.accounts
        )
        return next(paid, -1)
    except (KeyError, ValueError, TypeError, IndexError):
        return -1


def _is_of(transaction: Transaction, claim: Claim) -> bool:
    """Whether it is the very message that was claimed. A payout's id names no message: its signature does."""
    _, _, named = claim.payment_id.rpartition(":")
    return not claim.payment_id.startswith("svm:") or hashlib.sha256(transaction.message).hexdigest() == named


def _balance(balances: Any, at: int, mint: str) -> int:
    """0 where the account had none before."""
    for each in balances:
        if each["accountIndex"] == at:
            if each["mint"] != mint:
                raise ValueError("another mint")
            return int(str(each["uiTokenAmount"]["amount"]))
    return 0
