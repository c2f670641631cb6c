"""What a chain's events say of an authorization: that it was used, by which transaction, and that we were paid by it.

A payment counts when the asset's own contract emitted ``Transfer(payer, pay_to, amount)``, exactly, for this nonce
(B11, B12). Where one transaction uses several authorizations, each ``AuthorizationUsed`` goes with the event after it,
so that no transfer counts for two (I3).
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from ..model import VALID_FOR_MAX
from .evm_abi import address_word, topic, word
from .evm_reads import Chain, Log, Receipt, hex_data
from .rpc import RpcRefused, RpcTrouble

__all__ = ["Transferred", "Use", "find_plain_transfer", "find_transfer", "find_use", "landings", "transfers_to", "walk"]

_TRANSFER: Final = "Transfer(address,address,uint256)"
_USED: Final = "AuthorizationUsed(address,bytes32)"
_CANCELLED: Final = "AuthorizationCanceled(address,bytes32)"
_SPAN: Final = 2000
"""Blocks asked for at once: what most nodes allow…"""
_SPAN_MIN: Final = 8
"""…and what the stingiest do."""
_SPANS_MAX: Final = 64
_TOO_MUCH: Final = ("busy", "too-large")
"""How nodes say that, besides refusing it: by a code of their own, or by an answer beyond all limits."""


@dataclass(frozen=True, slots=True)
class Transferred:
    """What we look for: lower-case addresses, atomic units."""

    asset: str
    payer: str
    to: str
    value: int
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Use:
    """Where an authorization ended: the transaction's receipt, and our transfer's log index, -1 when we got nothing."""

    receipt: Receipt
    log_index: int


def _is_transfer(log: Log, wanted: Transferred) -> bool:
    return (
        log.address == wanted.asset
        and log.topics == (topic(_TRANSFER), hex_data(address_word(wanted.payer)), hex_data(address_word(wanted.to)))
        and log.data == word(wanted.value)
    )


def find_transfer(receipt: Receipt, wanted: Transferred) -> int:
    """The log index of the transfer that ``wanted`` made in this transaction, or -1."""
    if not receipt.succeeded:
        return -1
    used = _uses(receipt, wanted.asset)
    nonce = hex_data(wanted.nonce)
    ours = [i for i in used if receipt.logs[i].topics[1:] == (hex_data(address_word(wanted.payer)), nonce)]
    if not ours:
        return -1
    return _index(receipt.logs if len(used) == 1 else receipt.logs[ours[0] + 1 : ours[0] + 2], wanted)


def landings(receipt: Receipt, asset: str, to: str) -> Iterator[tuple[Transferred, int]]:
    """Every authorization that brought ``to`` something in this transaction, with its transfer's log index.

    An authorization's transfer is the first one from its payer after it, before the next authorization: where that went
    elsewhere, a plain transfer to us in the same transaction is no payment.
    """
    used = _uses(receipt, asset)
    for start, end in itertools.pairwise((*used, len(receipt.logs))):
        _, payer, nonce = receipt.logs[start].topics
        moved = (log for log in receipt.logs[start:end] if _is_from(log, asset, payer))
        found = next(moved, None)
        if found is not None and found.topics[2] == hex_data(address_word(to)):
            value = int.from_bytes(found.data, "big")
            yield Transferred(asset, "0x" + payer[-40:], to, value, bytes.fromhex(nonce[2:])), found.index


def transfers_to(address: str) -> list[Any]:
    """The topics by which a node finds transfers to an address."""
    return [topic(_TRANSFER), None, hex_data(address_word(address))]


def _uses(receipt: Receipt, asset: str) -> list[int]:
    """Where in a receipt's logs authorizations of ``asset`` were used."""
    first = topic(_USED)
    return [
        i
        for i, log in enumerate(receipt.logs)
        if log.address == asset and log.topics[:1] == (first,) and len(log.topics) == 3
    ]


def _is_from(log: Log, asset: str, payer: str) -> bool:
    shaped = len(log.topics) == 3 and len(log.data) == 32
    return log.address == asset and shaped and log.topics[:2] == (topic(_TRANSFER), payer)


def find_plain_transfer(receipt: Receipt, wanted: Transferred) -> int:
    """The log index of a transfer without an authorization, or -1."""
    return _index(receipt.logs, wanted)


def _index(logs: Iterable[Log], wanted: Transferred) -> int:
    return next((log.index for log in logs if _is_transfer(log, wanted)), -1)


async def walk(
    chain: Chain, asset: str, events: list[Any], first: int, last: int, *, back: bool = False
) -> AsyncGenerator[tuple[int, list[Log]]]:
    """Events of ``first`` to ``last``, as many blocks at once as the node allows, forwards or ``back``.

    With each part of them goes the block at its far end. Raises ``RpcTrouble``, ``RpcRefused``.
    """
    span = _SPAN
    while first <= last:
        low, high = (max(first, last - span + 1), last) if back else (first, min(last, first + span - 1))
        try:
            found = await chain.logs(asset, events, low, high)
        except (RpcRefused, RpcTrouble) as e:
            if span < _SPAN_MIN * 4 or (isinstance(e, RpcTrouble) and e.why not in _TOO_MUCH):
                raise
            span //= 4
            continue
        yield (low if back else high), found
        first, last = (first, low - 1) if back else (high + 1, last)


async def find_use(chain: Chain, wanted: Transferred, head: int, since: int) -> Use | None:
    """Look back from block ``head`` for what used or cancelled the authorization, as far as the time ``since``.

    None when nothing is found there, or the node does not reach so far. Raises ``RpcTrouble``, ``RpcRefused``.
    """
    events: list[Any] = [
        [topic(_USED), topic(_CANCELLED)],
        hex_data(address_word(wanted.payer)),
        hex_data(wanted.nonce),
    ]
    spans = 0
    async with aclosing(walk(chain, wanted.asset, events, 0, head, back=True)) as parts:
        async for first, found in parts:
            for log in found:
                receipt = await chain.receipt(log.transaction)
                if log.address == wanted.asset and receipt is not None and receipt.succeeded:
                    return Use(receipt, find_transfer(receipt, wanted))
            spans += 1
            if spans == _SPANS_MAX or first == 0 or (await chain.block(first)).timestamp < since - VALID_FOR_MAX:
                return None
    return None
