"""What became of a settlement, by the chain alone. What is not certain is pending.

``confirmed`` is the block ``confirmations`` below the head; the same depth counts for both answers.

    our transaction is in a block at or below ``confirmed``, and
      it succeeded, exact Transfer for our nonce       settled
      it succeeded, no such Transfer (B12)             failed: invalid_exact_evm_transfer_event_mismatch; the
                                                       authorization is spent, and it was not we who got the amount
    otherwise, the authorization's state read at ``confirmed`` itself, so that a lagging replica can only fail to
    answer (I-09):
      used, and the exact Transfer is found (B06)      settled, by that transaction
      used or cancelled otherwise                      failed: invalid_exact_evm_nonce_already_used
      used, and its event is not found                 pending
      unused, and confirmed's time >= validBefore      failed: nobody can move it any more
      unused, our transaction's nonce spent by then
        the same transfer would be refused there       failed, for the reason that it would be refused for (B07, B08)
        it would go through                            pending, until it does or expires
      else                                             pending; to be sent again if the node does not know it (I-07)

About the last but one pair: an authorization lives until validBefore, and whoever has seen it may submit it. After a
revert we can't send ours again, so ``failed`` means: no money moved, and at that block it could not. Where a payer
mends the cause (a balance refilled) and some third party then submits the old authorization, its nonce shows as used,
with our Transfer, and the same payment shown again is answered with that transaction (PaymentUsed), not with a
challenge. While the transfer could go through we say nothing, because a fresh challenge would invite a second payment.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ..ledger.rules import OPEN
from ..model import Claim, Outcome
from ..money import Asset
from .evm_abi import parse_transaction
from .evm_logs import Transferred, find_transfer, find_use
from .evm_reads import Block, Chain, Receipt
from .evm_verify import Verifier
from .rpc import RpcRefused, RpcTrouble

log = logging.getLogger("x402kit.evm")

__all__ = ["Judge", "Verdict", "agreed", "wanted_of"]

MISMATCH: Final = "invalid_exact_evm_transfer_event_mismatch"
USED: Final = "invalid_exact_evm_nonce_already_used"
EXPIRED: Final = "invalid_exact_evm_payload_authorization_valid_before"


@dataclass(frozen=True, slots=True)
class Verdict:
    """An outcome. ``gap``: it is certain, but our wallet's nonce was never used, and later ones wait for it."""

    outcome: Outcome
    gap: bool = False


def agreed(verdicts: Sequence[Verdict], quorum: int, reference: str) -> Verdict:
    """What at least ``quorum`` of several nodes say alike, else pending (I-10)."""
    outcomes = [(v.outcome.state, v.outcome.reference, v.outcome.block_hash, v.outcome.reason) for v in verdicts]
    said, count = Counter(outcomes).most_common(1)[0]
    if said[0] != "pending" and count >= quorum:
        return verdicts[outcomes.index(said)]
    resend = all(v.outcome.resend for v in verdicts)
    return Verdict(Outcome("pending", "the nodes do not agree", reference, resend=resend))


def wanted_of(claim: Claim) -> Transferred:
    """What the chain must show for a claim. Its payment id ends with the authorization's nonce."""
    nonce = bytes.fromhex(claim.payment_id.rpartition(":0x")[2])
    return Transferred(claim.asset.lower(), claim.payer.lower(), claim.pay_to.lower(), claim.amount, nonce)


def _mismatch(claim: Claim, reference: str) -> Outcome:
    log.error("ALERT: %s succeeded without the transfer of %d to %s (B12)", reference, claim.amount, claim.pay_to)
    return Outcome("failed", reason=MISMATCH, reference=reference, spent=True)


class Judge:
    """Reads through one node, or several as one. Sends nothing."""

    def __init__(self, chain: Chain, verifier: Verifier, asset: Asset, final_depth: int) -> None:
        self._chain, self._verifier, self._asset, self._final_depth = chain, verifier, asset, final_depth

    async def judge(self, claim: Claim, *, quick: bool = False) -> Verdict:
        """The table above; ``quick`` stops where our transaction is in no block yet."""
        try:
            receipt = await self._chain.receipt(claim.reference) if claim.reference else None
            if quick and receipt is None:
                return Verdict(Outcome("pending", reference=claim.reference))
            if receipt is not None and receipt.succeeded:
                return Verdict(await self._mined(claim, receipt))
            return await self._otherwise(claim, receipt)
        except (RpcTrouble, RpcRefused) as e:
            return Verdict(Outcome("pending", str(e), claim.reference))

    async def _mined(self, claim: Claim, receipt: Receipt) -> Outcome:
        depth = 0
        if claim.confirmations or claim.state not in OPEN:
            depth = await self._chain.head() - receipt.block
        return self._by_receipt(claim, receipt, find_transfer(receipt, wanted_of(claim)), depth)

    def _by_receipt(self, claim: Claim, receipt: Receipt, log_index: int, depth: int) -> Outcome:
        if depth < claim.confirmations:
            return Outcome("pending", reference=receipt.transaction, block=receipt.block, block_hash=receipt.block_hash)
        if log_index < 0:
            return _mismatch(claim, receipt.transaction)
        return Outcome(
            "settled",
            reference=receipt.transaction,
            block=receipt.block,
            block_hash=receipt.block_hash,
            log_index=log_index,
            final=depth >= self._final_depth,
        )

    async def _otherwise(self, claim: Claim, receipt: Receipt | None) -> Verdict:
        head = await self._chain.block("latest")
        confirmed = head
        if claim.confirmations:
            confirmed = await self._chain.block(max(0, head.number - claim.confirmations))
        wanted = wanted_of(claim)
        if receipt is not None and confirmed.number < receipt.block:
            return Verdict(Outcome("pending", reference=claim.reference))
        if await self._chain.authorization_used(wanted.asset, wanted.payer, wanted.nonce, confirmed.number):
            return Verdict(await self._used(claim, wanted, head, confirmed))
        reverted = receipt is not None
        spent = reverted or await self._nonce_spent(claim, confirmed)
        if confirmed.timestamp >= claim.valid_until:
            failed = Outcome("failed", reason=EXPIRED, reference=claim.reference)
            return Verdict(failed, gap=claim.nonce >= 0 and not spent)
        if spent:
            return Verdict(await self._refused(claim, wanted, confirmed))
        known = not claim.reference or await self._chain.knows(claim.reference)
        return Verdict(Outcome("pending", reference=claim.reference, resend=not known))

    async def _used(self, claim: Claim, wanted: Transferred, head: Block, confirmed: Block) -> Outcome:
        use = await find_use(self._chain, wanted, confirmed.number, claim.created_at)
        if use is None:
            return Outcome("pending", "what used the nonce is not found", claim.reference)
        if use.log_index >= 0:
            return self._by_receipt(claim, use.receipt, use.log_index, head.number - use.receipt.block)
        if use.receipt.transaction == claim.reference.lower():
            return _mismatch(claim, claim.reference)
        return Outcome("failed", reason=USED, reference=claim.reference)

    async def _nonce_spent(self, claim: Claim, block: Block) -> bool:
        if claim.nonce < 0:
            return False
        return await self._chain.transaction_count(claim.wallet.rpartition(":")[2], block.number) > claim.nonce

    async def _refused(self, claim: Claim, wanted: Transferred, block: Block) -> Outcome:
        """Our transaction is spent without effect. Whether its transfer could still go through decides."""
        pending = Outcome("pending", "the transfer could still go through", claim.reference)
        try:
            ours, _ = parse_transaction(claim.intent)
        except ValueError:
            return pending
        sender = claim.wallet.rpartition(":")[2]
        refusal = await self._verifier.refusal(ours.data, ours.gas, sender, block.number)
        if refusal is None:
            return pending
        reason = await self._verifier.diagnose(refusal, wanted, block.number)
        return Outcome("failed", reason=reason, reference=claim.reference)
