"""What the ports of a Lightning node promise, checked on any two adapters whose nodes can pay each other.

Each of ``CHECKS`` takes a ``Ground`` whose nodes are started, and leaves them started::

    @pytest.mark.parametrize("check", CHECKS, ids=named)
    async def test_contract(check: Check, ground: Ground) -> None:
        await check(ground)
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, TypeVar

import pytest

from tests.support.lightning import balance_of, cancel, holding, pay_part, send_parts_back
from x402kit.devnet import LightningDevnet
from x402kit.errors import RailUnavailable
from x402kit.networks.lightning_port import (
    REGTEST,
    InvoiceNode,
    InvoiceState,
    NewInvoice,
    PayingNode,
    PaymentState,
    is_lightning,
)
from x402kit.protocols.bolt11 import decode

__all__ = ["CHECKS", "Check", "Ground", "named"]

T = TypeVar("T")
UNKNOWN: Final = "5a" * 32
TOO_MUCH: Final = 9_000_000_000
"""Msat: more than either side of the devnet's channel holds, and a multiple of every step."""
TRIES: Final = 400
PAUSE: Final = 0.05


@dataclass(frozen=True)
class Ground:
    """Started adapters of the devnet's nodes, or of services on top of these.

    ``holds``: the seller's adapter says "accepted" of a held payment, where others can only say "open".
    ``cancels``: its product gives invoices up, and says so.
    """

    seller: InvoiceNode
    payer: PayingNode
    nodes: LightningDevnet
    holds: bool = True
    cancels: bool = True

    @property
    def amount(self) -> int:
        """A small amount in msat; with msat that are no whole satoshi where the node can count them."""
        return 12_345 if self.seller.step == 1 else 12_000

    async def invoice(self, amount: int = 0, *, expiry_seconds: int = 300) -> NewInvoice:
        return await self.seller.create(amount or self.amount, memo="a call", expiry_seconds=expiry_seconds)

    async def pay(self, bolt11: str, *, timeout_seconds: float = 15) -> PaymentState:
        return await self.payer.pay(bolt11, max_fee=20_000, timeout_seconds=timeout_seconds)


Check = Callable[[Ground], Awaitable[None]]


def named(check: Check) -> str:
    """The check's name, for pytest's ids."""
    return getattr(check, "__name__", "check")


def is_preimage(preimage: str, payment_hash: str) -> bool:
    return sha256(bytes.fromhex(preimage)).hexdigest() == payment_hash


async def until(ask: Callable[[], Awaitable[T]], good: Callable[[T], bool]) -> T:
    """Ask again until it is so: nodes tell of a change a little after it."""
    found = await ask()
    for _ in range(TRIES):
        if good(found):
            break
        await asyncio.sleep(PAUSE)
        found = await ask()
    assert good(found), found
    return found


async def the_network_is_known(on: Ground) -> None:
    assert (on.seller.network, on.payer.network) == (REGTEST, REGTEST)
    assert is_lightning(on.seller.network)
    assert on.seller.step in (1, 1000)
    assert isinstance(on.payer, PayingNode)


async def an_invoice_states_what_was_asked_for(on: Ground) -> None:
    before = int(time.time())
    made = await on.seller.create(on.amount, memo="für “Übersetzung” 🧾", expiry_seconds=60)
    read = decode(made.bolt11)
    assert (made.amount, read.amount, read.network) == (on.amount, on.amount, REGTEST)
    assert (made.payment_hash, made.expires_at) == (read.payment_hash, read.expires_at)
    assert made.payment_hash == made.payment_hash.lower()
    assert before + 59 <= made.expires_at <= int(time.time()) + 61
    assert await on.seller.look_up(made.payment_hash) == InvoiceState("open")


async def each_invoice_is_a_new_one(on: Ground) -> None:
    made = await asyncio.gather(*(on.invoice() for _ in range(4)))
    assert len({each.payment_hash for each in made}) == 4
    assert len({each.bolt11 for each in made}) == 4


async def any_memo_will_do(on: Ground) -> None:
    for memo in ("", "\n\t\"'\\{}", "ж" * 2000, "a" * 640):
        made = await on.seller.create(on.amount, memo=memo, expiry_seconds=60)
        assert decode(made.bolt11).amount == on.amount


async def an_invoice_that_is_not_the_nodes_is_unknown(on: Ground) -> None:
    assert await on.seller.look_up(UNKNOWN) == InvoiceState("unknown")


async def a_payment_settles_its_invoice(on: Ground) -> None:
    made = await on.invoice()
    before = await balance_of(on.nodes.seller)
    state = await on.pay(made.bolt11)
    assert (state.state, state.reason) == ("succeeded", "")
    assert is_preimage(state.preimage, made.payment_hash)
    assert 0 <= state.fee <= 20_000
    settled = await until(lambda: on.seller.look_up(made.payment_hash), lambda found: found.state != "open")
    assert settled == InvoiceState("settled", made.amount)
    assert await balance_of(on.nodes.seller) - before == made.amount
    assert await on.payer.payment(made.payment_hash) == state


async def an_invoice_paid_again_moves_its_money_once(on: Ground) -> None:
    made = await on.invoice()
    first = await on.pay(made.bolt11)
    before = await balance_of(on.nodes.seller)
    again = await on.pay(made.bolt11)
    assert again.state == "succeeded"
    assert again.preimage == first.preimage
    assert await balance_of(on.nodes.seller) == before


async def an_invoice_paid_twice_at_once_moves_its_money_once(on: Ground) -> None:
    made = await on.invoice()
    before = await balance_of(on.nodes.seller)
    states = await asyncio.gather(on.pay(made.bolt11), on.pay(made.bolt11))
    assert {state.state for state in states} <= {"succeeded", "pending"}
    found = await until(lambda: on.payer.payment(made.payment_hash), lambda state: state.state == "succeeded")
    assert is_preimage(found.preimage, made.payment_hash)
    assert await balance_of(on.nodes.seller) - before == made.amount


async def an_unknown_payment_is_unknown(on: Ground) -> None:
    assert (await on.payer.payment(UNKNOWN)).state == "unknown"
    made = await on.invoice()
    assert (await on.payer.payment(made.payment_hash)).state == "unknown"


async def what_is_no_invoice_is_not_paid(on: Ground) -> None:
    made = await on.invoice()
    other = made.bolt11[:-1] + ("q" if made.bolt11[-1] != "q" else "p")
    for text in ("", "lnbcrt1", other, "https://example.com/", "lnbc" + made.bolt11[6:]):
        assert (await on.pay(text)).state == "failed"
    assert await on.seller.look_up(made.payment_hash) == InvoiceState("open")


async def an_expired_invoice_is_not_paid(on: Ground) -> None:
    made = await on.invoice(expiry_seconds=1)
    await asyncio.sleep(2.1)
    before = await balance_of(on.nodes.seller)
    assert (await on.pay(made.bolt11)).state == "failed"
    assert (await on.payer.payment(made.payment_hash)).state in ("failed", "unknown")
    assert (await on.seller.look_up(made.payment_hash)).state != "settled"
    assert await balance_of(on.nodes.seller) == before


async def more_than_there_is_is_not_paid(on: Ground) -> None:
    made = await on.invoice(TOO_MUCH)
    assert (await on.pay(made.bolt11)).state == "failed"
    assert (await on.payer.payment(made.payment_hash)).state in ("failed", "unknown")
    assert (await on.seller.look_up(made.payment_hash)).state == "open"


async def a_held_payment_is_pending_and_not_settled(on: Ground) -> None:
    """G03: the money is on its way, the seller's node has the preimage, and nothing is settled."""
    made = await on.invoice()
    async with holding(on.nodes.seller):
        assert (await on.pay(made.bolt11, timeout_seconds=1)).state == "pending"
        assert (await on.payer.payment(made.payment_hash)).state == "pending"
        assert (await on.pay(made.bolt11, timeout_seconds=1)).state == "pending"
        found = await on.seller.look_up(made.payment_hash)
        assert found == InvoiceState("accepted" if on.holds else "open")
    settled = await until(lambda: on.seller.look_up(made.payment_hash), lambda state: state.state == "settled")
    assert settled.received == made.amount
    payment = await until(lambda: on.payer.payment(made.payment_hash), lambda state: state.state != "pending")
    assert is_preimage(payment.preimage, made.payment_hash)


async def a_payment_that_the_seller_sends_back_has_failed(on: Ground) -> None:
    made = await on.invoice()
    before = await balance_of(on.nodes.payer)
    async with holding(on.nodes.seller):
        assert (await on.pay(made.bolt11, timeout_seconds=1)).state == "pending"
        await cancel(on.nodes.seller, made.payment_hash)
    await until(lambda: on.payer.payment(made.payment_hash), lambda state: state.state == "failed")
    assert await balance_of(on.nodes.payer) == before
    if on.cancels:
        assert await on.seller.look_up(made.payment_hash) == InvoiceState("dead")
    assert (await on.seller.look_up(made.payment_hash)).state != "settled"


async def a_part_of_a_payment_does_not_settle(on: Ground) -> None:
    """G06: half of it has come; unpaid, until all has."""
    made = await on.invoice()
    before = await balance_of(on.nodes.seller)
    await pay_part(on.nodes.payer, made.bolt11)
    found = await on.seller.look_up(made.payment_hash)
    assert found == InvoiceState("accepted" if on.holds else "open")
    await send_parts_back(on.nodes.seller)
    assert await on.seller.look_up(made.payment_hash) == InvoiceState("open")
    assert await balance_of(on.nodes.seller) == before
    assert (await on.pay(made.bolt11)).state == "succeeded"
    await until(lambda: on.seller.look_up(made.payment_hash), lambda state: state.state == "settled")


async def a_subscriber_is_told_what_settles(on: Ground) -> None:
    earlier = await on.invoice()
    assert (await on.pay(earlier.bolt11)).state == "succeeded"
    told: list[str] = []
    stream = on.seller.subscribe()

    async def listen() -> None:
        async for payment_hash in stream:
            told.append(payment_hash)

    listening = asyncio.create_task(listen())
    try:
        await _until_it_hears(on, told)
        wanted = [await on.invoice() for _ in range(3)]
        for made in (wanted[0], wanted[2]):
            assert (await on.pay(made.bolt11)).state == "succeeded"
        for _ in range(TRIES):
            if wanted[2].payment_hash in told or listening.done():
                break
            await asyncio.sleep(PAUSE)
    finally:
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening
        await stream.aclose()
    assert told[-2:] == [wanted[0].payment_hash, wanted[2].payment_hash]
    assert earlier.payment_hash not in told
    assert len(set(told)) == len(told)


async def _until_it_hears(on: Ground, told: list[str]) -> None:
    """A stream that is silent can't say that it is open: pay until the first of the payments is told."""
    paid: set[str] = set()
    for _ in range(20):
        probe = await on.invoice()
        assert (await on.pay(probe.bolt11)).state == "succeeded"
        paid.add(probe.payment_hash)
        for _ in range(10):
            if paid.intersection(told):
                return
            await asyncio.sleep(PAUSE)
    raise AssertionError("nothing is told")


async def a_closed_node_is_out_of_reach_until_it_is_started_again(on: Ground) -> None:
    made = await on.invoice()
    await on.seller.close()
    await on.seller.close()
    await on.payer.close()
    try:
        with pytest.raises(RailUnavailable):
            await on.seller.create(on.amount, expiry_seconds=60)
        with pytest.raises(RailUnavailable):
            await on.seller.look_up(made.payment_hash)
        with pytest.raises(RailUnavailable):
            await on.pay(made.bolt11)
        with pytest.raises(RailUnavailable):
            await on.payer.payment(made.payment_hash)
    finally:
        await on.seller.start()
        await on.payer.start()
    assert (await on.pay(made.bolt11)).state == "succeeded"


CHECKS: Final[tuple[Check, ...]] = (
    the_network_is_known,
    an_invoice_states_what_was_asked_for,
    each_invoice_is_a_new_one,
    any_memo_will_do,
    an_invoice_that_is_not_the_nodes_is_unknown,
    a_payment_settles_its_invoice,
    an_invoice_paid_again_moves_its_money_once,
    an_invoice_paid_twice_at_once_moves_its_money_once,
    an_unknown_payment_is_unknown,
    what_is_no_invoice_is_not_paid,
    an_expired_invoice_is_not_paid,
    more_than_there_is_is_not_paid,
    a_held_payment_is_pending_and_not_settled,
    a_payment_that_the_seller_sends_back_has_failed,
    a_part_of_a_payment_does_not_settle,
    a_subscriber_is_told_what_settles,
    a_closed_node_is_out_of_reach_until_it_is_started_again,
)
