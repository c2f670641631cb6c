"""What the chain shows that we were paid, without a store of ours: for one that lost its last commits (J05).

Only what an authorization brought us is a payment (evm_logs.py). Transfers to us are asked for, not authorizations:
those can't be asked for by recipient, and a busy token has too many of them. What can't be read ends the scan with
``RailUnavailable``, so that nothing is passed over in silence.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from ..errors import RailUnavailable
from ..money import Asset
from .evm import chain_id, checksum, payment_id
from .evm_logs import landings, transfers_to, walk
from .evm_reads import Block, Chain, Receipt, hex_data
from .port import Landed
from .rpc import RpcRefused, RpcTrouble

__all__ = ["head_block", "settled_since"]

_AT_ONCE: Final = 16
"""Receipts that are read together."""


async def head_block(chain: Chain, confirmations: int) -> int:
    """The highest block in which a payment has as many blocks on top of it. Raises ``RailUnavailable``."""
    try:
        return max(0, await chain.head() - confirmations)
    except (RpcTrouble, RpcRefused) as e:
        raise RailUnavailable(detail=str(e)) from e


async def settled_since(
    chain: Chain, asset: Asset, pay_to: str, first: int, confirmations: int
) -> AsyncGenerator[Landed]:
    """Payments in blocks from ``first`` to ``head_block``, oldest first. Raises ``RailUnavailable``."""
    last = await head_block(chain, confirmations)
    parts = walk(chain, asset.address.lower(), transfers_to(pay_to), max(0, first), last)
    try:
        async with aclosing(parts):
            async for _, logs in parts:
                for receipt in await _receipts(chain, [log.transaction for log in logs]):
                    for landed in await _landed(chain, receipt, asset, pay_to):
                        yield landed
    except (RpcTrouble, RpcRefused) as e:
        raise RailUnavailable(detail=str(e)) from e


async def _receipts(chain: Chain, transactions: list[str]) -> list[Receipt]:
    """Each transaction's, once, in their order."""
    found: list[Receipt] = []
    wanted = list(dict.fromkeys(transactions))
    for start in range(0, len(wanted), _AT_ONCE):
        some = map(chain.receipt, wanted[start : start + _AT_ONCE])
        for answer in await asyncio.gather(*some, return_exceptions=True):  # none is left running behind an error
            if isinstance(answer, BaseException):
                raise answer
            if answer is None:
                raise RailUnavailable(detail="a transaction of the scan has no receipt")
            found.append(answer)
    return found


async def _landed(chain: Chain, receipt: Receipt, asset: Asset, pay_to: str) -> list[Landed]:
    moves = list(landings(receipt, asset.address.lower(), pay_to.lower())) if receipt.succeeded else []
    if not moves:
        return []
    block: Block = await chain.block(receipt.block)
    if block.hash != receipt.block_hash:
        raise RailUnavailable(detail="the chain changed under the scan")
    chain_number = chain_id(asset.network)
    return [
        Landed(
            payment_id(chain_number, moved.asset, moved.payer, hex_data(moved.nonce)),
            checksum(moved.payer),
            moved.value,
            receipt.transaction,
            receipt.block,
            receipt.block_hash,
            index,
            block.timestamp,
        )
        for moved, index in moves
        if moved.value > 0  # anyone may authorize nothing; the ledger has no entry for it (E09)
    ]
