"""A balance goes back to its owner's wallet on Solana: a checked transfer from ours. What is not certain is pending.

    our transaction is in a block, and
      it succeeded, and brought the recipient exactly the amount     settled, at the price's commitment
      it succeeded, without (B12)                                    pending, for the operator
      it failed                                                      failed, once that is finalized
    no node knows it, and its blockhash is dead (svm_outcome.py)     failed
    otherwise                                                        pending; the same bytes are sent again

The recipient's token account must exist: whoever could have us create them could close them, and keep the rent.
"""

from __future__ import annotations

import logging
import secrets
from typing import Any, Final

from ..errors import BadRequest, RailUnavailable
from ..model import Claim, Intent, Outcome
from ..money import MAX_AMOUNT, Asset
from .rpc import RpcRefused, RpcTrouble
from .svm_outcome import FAILED, MISMATCH, Judge, Sent
from .svm_sender import LAG_BLOCKS, Sender
from .svm_transaction import COMPUTE_BUDGET, MEMO, address_bytes, address_text, solders, token_account
from .svm_wallet import SvmWallet

__all__ = ["judge_payout", "prepare_payout"]

log = logging.getLogger("x402kit.svm")

_UNITS: Final = 30_000
"""A transfer and a memo use some 7 000, more with Token-2022."""
_UNIT_PRICE: Final = 100_000
"""Micro-lamports: 3 000 lamports of priority."""


async def prepare_payout(sender: Sender, asset: Asset, program: bytes, to: str, amount: int) -> Intent:
    """A signed transfer of ``amount`` atomic units to ``to``; nothing is sent.

    Raises ``BadRequest`` for what no payout can be, ``RailUnavailable`` where the wallet does not hold the amount, and
    where the chain would refuse the transfer.
    """
    node, wallet = sender.node, sender.wallet
    _check(wallet, to, amount)
    mint = address_bytes(asset.address)
    source, target = (token_account(address_bytes(owner), mint, program) for owner in (wallet.address, to))
    try:
        if await node.account(address_text(target)) is None:
            raise BadRequest("invalid_payout_recipient", detail="the recipient has no account for this token")
        held = await node.account(address_text(source))
        if held is None or int.from_bytes(held.data[64:72], "little") < amount:
            log.error("ALERT: %s holds less of %s than a payout of %d", wallet.address, asset.address, amount)
            raise RailUnavailable(detail="the settlement wallet holds less than the payout")
        blockhash, _ = await node.blockhash()
        message = _message(wallet.address, (source, mint, target), amount, asset.decimals, program, blockhash)
        made = await node.simulate(b"\x01" + bytes(64) + message)
        if made.error is not None:
            raise RailUnavailable("payout_refused", detail=str(made.error)[:200])
        latest = await node.latest()
    except (RpcTrouble, RpcRefused) as e:
        raise RailUnavailable(detail=str(e)) from e
    signature = await wallet.sign(message)
    return Sent(latest.last_valid + LAG_BLOCKS, latest.slot, b"\x01" + signature + message).intent(
        signature, wallet.address
    )


def _check(wallet: SvmWallet, to: str, amount: int) -> None:
    try:
        address_bytes(to)
    except ValueError as e:
        raise BadRequest("invalid_payout_recipient", detail="not a Solana address") from e
    if to == wallet.address:
        raise BadRequest("invalid_payout_recipient", detail="the recipient is the wallet that pays")
    if not 0 < amount <= MAX_AMOUNT:
        raise BadRequest("invalid_payout_amount")


def _message(
    owner: str, accounts: tuple[bytes, bytes, bytes], amount: int, decimals: int, program: bytes, blockhash: str
) -> bytes:
    """The bytes to sign. A random memo keeps two equal payouts from being one transaction."""
    made, keys = solders("instruction"), solders("pubkey").Pubkey

    def step(key: bytes, data: bytes, *metas: Any) -> Any:
        return made.Instruction(keys.from_bytes(key), data, list(metas))

    def meta(key: bytes, *, signs: bool = False, writes: bool = False) -> Any:
        return made.AccountMeta(keys.from_bytes(key), signs, writes)

    source, mint, target = accounts
    payer = address_bytes(owner)
    transfer = (meta(source, writes=True), meta(mint), meta(target, writes=True), meta(payer, signs=True))
    steps = [
        step(COMPUTE_BUDGET, b"\x02" + _UNITS.to_bytes(4, "little")),
        step(COMPUTE_BUDGET, b"\x03" + _UNIT_PRICE.to_bytes(8, "little")),
        step(program, b"\x0c" + amount.to_bytes(8, "little") + bytes((decimals,)), *transfer),
        step(MEMO, secrets.token_hex(16).encode()),
    ]
    latest = solders("hash").Hash.from_string(blockhash)
    message = solders("message").MessageV0.try_compile(keys.from_bytes(payer), steps, [], latest)
    return bytes(solders("message").to_bytes_versioned(message))


async def judge_payout(judge: Judge, claim: Claim) -> Outcome:
    """The table above. Sends nothing."""
    outward = claim._replace(pay_to=claim.payer)
    made = await judge.judge(outward)
    if made.state == "failed" and made.reason == FAILED:
        # It gives the amount back to the balance: not before no fork can let the transfer land after all.
        made = await judge.judge(outward._replace(confirmations=1))
    if made.state == "failed" and made.reason == MISMATCH:
        return Outcome("pending", "succeeded without its transfer", claim.reference)
    return made
