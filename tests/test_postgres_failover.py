"""J05: a replica takes over that has not heard of the last commits; what was paid comes back from the chain, once."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.evm_payments import PRICE, Seller, seller
from tests.support.postgres import PostgresServer
from x402kit.devnet import EvmDevnet
from x402kit.errors import ConfigError, RailUnavailable
from x402kit.ledger.postgres import PostgresStore
from x402kit.ledger.sqlite import SQLiteStore
from x402kit.model import Account, Authorization, Claim
from x402kit.paywall.recovery import Recovery
from x402kit.paywall.settlement import Settler


class Pair(NamedTuple):
    primary: PostgresServer
    replica: PostgresServer

    def dsn(self, database: str) -> str:
        """Whichever of the two can be written to."""
        hosts = f"127.0.0.1:{self.primary.port},127.0.0.1:{self.replica.port}"
        return f"postgresql://postgres@{hosts}/{database}?target_session_attrs=read-write"

    def part(self) -> None:
        """From now on the replica hears nothing."""
        self.replica.follows(self.primary)
        self.replica.stop()

    def fail_over(self) -> None:
        self.primary.stop(signal.SIGKILL)
        self.replica.start()
        self.replica.promote()


@pytest.fixture
def pair() -> Iterator[Pair]:
    with PostgresServer() as primary, primary.replica() as replica:
        yield Pair(primary, replica)


async def pay(shop: Seller, store: PostgresStore, authorization: Authorization, owner: str = "a") -> Claim:
    """All of the flow for a payment, up to its settlement."""
    now = int(time.time())
    claim = await store.claim(authorization.claim(now, deadline=now + 600, owner=owner))
    settler = Settler(store, [shop.rail])
    settled = await settler.settle(shop.rail, authorization, shop.offer, claim)
    await settler.close()
    assert settled.state == "settled"
    return settled


async def settled_down(recovery: Recovery) -> None:
    """As the reconciler does, pass by pass."""
    for _ in range(100):
        try:
            await recovery.check()
            return
        except RailUnavailable:
            await asyncio.sleep(0.1)


async def test_J05_what_a_failover_lost_is_credited_once(
    chain: EvmDevnet, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    database = pair.primary.create().rpartition("/")[2]
    store = PostgresStore(pair.dsn(database), lease_seconds=0.3, busy_seconds=2)
    await store.start()
    async with seller(chain) as shop:
        payer = Account.of(shop.rail.network, shop.rail.asset.address, chain.accounts[1].address)
        recovery = Recovery(store, [shop.rail])
        known = await pay(shop, store, shop.authorize())
        assert await store.move(known.payment_id, "serve", "a", captured=PRICE - 1)
        await recovery.check()
        intended = shop.authorize()
        await store.claim(intended.claim(1, deadline=2_000_000_000, owner="b"))
        dropped = shop.authorize()
        await store.claim(dropped.claim(1, owner="c"))
        await store.move(dropped.payment_id, "drop", "c", reason="not_sent")
        pair.part()

        lost = [await pay(shop, store, shop.authorize()) for _ in range(3)]
        assert await store.move(lost[0].payment_id, "serve", "a")
        assert await store.move(lost[1].payment_id, "credit", "a")
        await pay(shop, store, intended, "b")
        await pay(shop, store, dropped, "c")
        store._held["claims"].clear()  # pyright: ignore[reportPrivateUsage]  # all of that process is gone
        pair.fail_over()

        await settled_down(recovery)  # the same store goes on, on the replica
        other = PostgresStore(pair.dsn(database))
        await other.start()
        await asyncio.sleep(0.4)
        for again in (recovery, Recovery(other, [shop.rail]), Recovery(other, [shop.rail])):
            await again.check()
        assert await recovery.recover(0)  # an operator asks for all of it

        for claim in lost:
            found = await other.get(claim.payment_id)
            assert found is not None
            assert (found.state, found.payer, found.amount, found.reference) == (
                "credited",
                claim.payer,
                claim.amount,
                claim.reference,
            )
            entry = await other.entry(f"claim:{claim.payment_id}")
            assert entry is not None
            assert (entry.type, entry.available) == ("deposit", PRICE)
        credited = await other.get(dropped.payment_id)
        assert credited is not None
        assert credited.state == "credited"
        waiting = await other.get(intended.payment_id)
        assert waiting is not None
        assert (waiting.state, waiting.block > 0) == ("settled", True)  # shown again, it is served
        assert await other.balance(payer) == (4 * PRICE + 1, 0)
        assert await other.verify() == []
        assert (await other.totals())[payer.asset]["external"] == -5 * PRICE
        assert shop.received() == 6 * PRICE
        await other.close()
    assert caplog.text.count("was lost and is restored") == 4
    await store.close()


async def test_J05_while_the_chain_cannot_be_read_nothing_is_called_done(
    chain: EvmDevnet, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    database = pair.primary.create().rpartition("/")[2]
    store = PostgresStore(pair.dsn(database), busy_seconds=2)
    await store.start()
    async with seller(chain) as shop:
        await Recovery(store, [shop.rail]).check()
        before = await store.get_meta("place")
        pair.part()
        lost = await pay(shop, store, shop.authorize())
        pair.fail_over()
    async with seller(chain, rpc="http://127.0.0.1:1/") as cut_off:
        await settled_down(Recovery(store, [cut_off.rail]))
    assert await store.get_meta("place") == before
    async with seller(chain) as shop:
        await settled_down(Recovery(store, [shop.rail]))
        assert (await store.balance(Account.of(lost.network, lost.asset, lost.payer))).available == PRICE
    assert await store.get_meta("place") != before
    assert "ALERT: the ledger's database has changed" in caplog.text
    await store.close()


async def test_J05_a_note_of_a_block_never_reaches_a_history_that_lost_it(pair: Pair) -> None:
    """It would hide the payments that are lost."""
    database = pair.primary.create().rpartition("/")[2]
    store = PostgresStore(pair.dsn(database), busy_seconds=2)
    await store.start()
    place = await store.place()
    assert await store.set_meta("seen", b"1", place=place)
    pair.part()
    pair.fail_over()
    for _ in range(50):
        try:
            assert not await store.set_meta("seen", b"2", place=place)
            break
        except RailUnavailable:
            await asyncio.sleep(0.1)
    assert await store.get_meta("seen") == b"1"
    assert await store.set_meta("seen", b"3", place=await store.place())
    await store.close()


async def test_J05_a_ledger_without_a_note_says_what_to_do(
    database: str, chain: EvmDevnet, caplog: pytest.LogCaptureFixture
) -> None:
    store = PostgresStore(database)
    await store.start()
    await store.set_meta("place", b"another", place=await store.place())
    caplog.set_level(logging.WARNING)
    async with seller(chain) as shop:
        lost = await shop.settle(shop.authorize())
        recovery = Recovery(store, [shop.rail])
        for since in (None, {}, {"eip155:1": 1}):
            with pytest.raises(ConfigError, match=r"no block of eip155:8453|no rail with a node is on eip155:1$"):
                await recovery.recover(since)
        await recovery.check()
        assert "ALERT: no block of eip155:8453 was noted; call recover(since_block=…)" in caplog.text
        assert await recovery.recover({shop.rail.network: lost[1].block})
    assert (await store.balance(Account.of(lost[0].network, lost[0].asset, lost[0].payer))).available == PRICE
    await store.close()


async def test_J05_a_backup_of_the_embedded_ledger_is_brought_up_to_date(chain: EvmDevnet, tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "restored.db")
    await store.start()
    async with seller(chain) as shop:
        recovery = Recovery(store, [shop.rail])
        await recovery.check()  # a file has no place to change
        lost, outcome = await shop.settle(shop.authorize())
        for _ in range(2):
            assert await recovery.recover(outcome.block)
    assert (await store.balance(Account.of(lost.network, lost.asset, lost.payer))).available == PRICE
    assert await store.verify() == []
    await store.close()
