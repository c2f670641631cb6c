"""A balance goes back to its owner's wallet: a plain ERC-20 transfer from ours. What is not certain is pending.

    our transaction is in a block, and
      it succeeded, with the exact Transfer      settled, from ``confirmations`` blocks on top
      it succeeded, without (B12)                pending, for the operator: our money may be anywhere but here
      it reverted                                failed, from ``final_depth`` blocks on top
    otherwise, its nonce is used ``final_depth`` blocks below the head, and
      the transaction that used it is found      failed: ours can never land
      it is not found                            pending, for the operator: the node keeps no state so far back
    otherwise, its nonce is used                 pending
    otherwise                                    pending; to be sent again if the node does not know it (I-07)

Failed gives the amount back to the balance, so it waits for the depth at which no reorganisation is expected: a nonce
that is free again lets the transfer land after all. Nobody waits for a failure.

A payment ends with its authorization; a payout can land as long as its nonce is free. It is never priced anew: the
very same bytes are sent again. So that dearer gas does not leave it, and everything behind it, waiting, it offers more
than a settlement: a sixteenth of the wallet's coin, as far as ``max_fee_per_gas`` goes (what is paid is the price of
the block, EIP-1559). Where fees rise above that for ever, it stays pending, the amount stays out of the balance, and
later transactions of this wallet wait behind its nonce. The operator then uses the nonce up with a transaction of the
wallet's own at a higher price; the payout is failed, for certain, and the balance has the amount again.
"""

from __future__ import annotations

import logging
from typing import Final

from ..errors import BadRequest, ConfigError, RailUnavailable
from ..model import Claim, Intent, Outcome
from ..money import MAX_AMOUNT, Asset
from .evm_abi import address_word, call_data, word
from .evm_logs import Transferred, find_plain_transfer
from .evm_outcome import Verdict
from .evm_reads import Chain, Receipt
from .evm_ready import check_addresses, check_shape
from .evm_sender import Sender
from .evm_wallet import Wallet
from .port import Nonces
from .rpc import RpcRefused, RpcTrouble

log = logging.getLogger("x402kit.evm")

__all__ = ["judge_payout", "prepare_payout"]

REVERTED: Final = "payout_reverted"
REPLACED: Final = "payout_nonce_used"
_SHARE: Final = 16


async def prepare_payout(
    chain: Chain, sender: Sender, wallet: Wallet, asset: Asset, to: str, amount: int, nonces: Nonces, *, gas: int
) -> Intent:
    """A signed transfer of ``amount`` atomic units to ``to``; ``gas`` is its absolute limit. Nothing is sent.

    Raises ``BadRequest`` for what no payout can be, ``RailUnavailable`` where the wallet does not hold the amount, and
    where the token refuses the transfer.
    """
    _check(asset, wallet, to, amount)
    data = call_data("transfer(address,uint256)", address_word(to), word(amount))
    try:
        held = await chain.token_balance(asset.address, wallet.address)
        coin = await chain.balance(wallet.address)
        if held < amount:
            log.error("ALERT: %s holds %d of %s, less than a payout of %d", wallet.address, held, asset.address, amount)
            raise RailUnavailable(detail="the settlement wallet holds less than the payout")
        await chain.call(asset.address, data, sender=wallet.address, gas=gas)
    except RpcRefused as e:
        # A wallet on the token's black list, or a token that is paused: no gas is spent on it.
        raise RailUnavailable("payout_refused" if e.reverted else "", detail=str(e)) from e
    except RpcTrouble as e:
        raise RailUnavailable(detail=str(e)) from e
    return await sender.prepare(asset.address, data, gas, "payout", nonces, offer=coin // (_SHARE * gas))


def _check(asset: Asset, wallet: Wallet, to: str, amount: int) -> None:
    try:
        check_shape("the recipient", to)
        check_addresses(to, asset, None)
    except ConfigError as e:
        raise BadRequest("invalid_payout_recipient", detail=str(e)) from e
    if to.lower() == wallet.address.lower():
        raise BadRequest("invalid_payout_recipient", detail="the recipient is the wallet that pays")
    if not 0 < amount <= MAX_AMOUNT:
        raise BadRequest("invalid_payout_amount")


async def judge_payout(chain: Chain, claim: Claim, final_depth: int) -> Verdict:
    """The table above, through one node or several as one. Sends nothing."""
    try:
        receipt = await chain.receipt(claim.reference)
        head = await chain.head()
        if receipt is not None:
            return Verdict(_mined(claim, receipt, head - receipt.block, final_depth))
        return Verdict(await _not_mined(chain, claim, head, final_depth))
    except (RpcTrouble, RpcRefused) as e:
        return Verdict(Outcome("pending", str(e), claim.reference))


def _mined(claim: Claim, receipt: Receipt, depth: int, final_depth: int) -> Outcome:
    seen = Outcome("pending", reference=claim.reference, block=receipt.block, block_hash=receipt.block_hash)
    if not receipt.succeeded:
        if depth < final_depth:
            return seen._replace(reason="reverted, not final yet")
        return Outcome("failed", REVERTED, claim.reference)
    if depth < claim.confirmations:
        return seen
    wanted = Transferred(claim.asset.lower(), _wallet(claim), claim.payer.lower(), claim.amount, b"")
    index = find_plain_transfer(receipt, wanted)
    if index < 0:
        log.error("ALERT: payout %s succeeded without the transfer of %d", claim.reference, claim.amount)
        return seen._replace(reason="succeeded without its transfer")
    return seen._replace(state="settled", log_index=index, final=depth >= final_depth)


async def _not_mined(chain: Chain, claim: Claim, head: int, final_depth: int) -> Outcome:
    pending = Outcome("pending", reference=claim.reference)
    wallet, sunk = _wallet(claim), max(0, head - final_depth)
    if await chain.transaction_count(wallet, sunk) > claim.nonce:
        other = await _user_of(chain, wallet, claim.nonce, sunk)
        if other and other != claim.reference.lower():
            return Outcome("failed", REPLACED, claim.reference)
        return pending._replace(reason="what used the nonce is not found")
    if await chain.transaction_count(wallet, head) > claim.nonce:
        return pending._replace(reason="the nonce is used, not final yet")
    return pending._replace(resend=not await chain.knows(claim.reference))


async def _user_of(chain: Chain, wallet: str, nonce: int, above: int) -> str:
    """The transaction that used a nonce that is used at block ``above``; empty where that can't be seen.

    It is looked for because a receipt that is missing proves nothing: a replica may lag (I-09).
    """
    below, step = above, 1
    try:
        while below and await chain.transaction_count(wallet, below) > nonce:
            above, below, step = below, max(0, below - step), step * 2
        while above - below > 1:
            middle = (above + below) // 2
            used = await chain.transaction_count(wallet, middle) > nonce
            above, below = (middle, below) if used else (above, middle)
    except RpcRefused:  # most nodes keep the state of the last 128 blocks only
        log.error("ALERT: nonce %d of %s is used, by what an archive node could say", nonce, wallet)
        return ""
    return await chain.sent_in(above, wallet, nonce)


def _wallet(claim: Claim) -> str:
    return claim.wallet.rpartition(":")[2].lower()
