"""PostgreSQL that breaks off: lost answers, terminated backends, restarts, full pools, locks, a read-only server."""

from __future__ import annotations

import asyncio
import functools
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest

from tests.support.postgres import PostgresServer, query
from tests.test_postgres import opened
from tests.test_postgres import store as store
from tests.test_store import ALICE, FAR, hold, new_claim, settle
from x402kit.errors import RailUnavailable
from x402kit.ledger import postgres_batch
from x402kit.ledger.postgres import PostgresStore
from x402kit.model import Account, Spend


async def test_E03_a_connection_lost_after_the_commit_changes_nothing(
    store: PostgresStore, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kind of move is committed, and the connection is cut before its answer arrives."""
    await store.deposit(ALICE, 1000, "first")
    cut = _cut_after_commit(database, monkeypatch)
    entry = await store.deposit(ALICE, 500, "d")
    assert (await store.reserve(hold("1"), Spend("p", FAR))).holder == "h"
    captured = await store.capture("1", 60, holder="h")
    await store.reserve(hold("2"))
    voided = await store.void("2", holder="h")
    assert (await store.claim(new_claim())).owner == "a"
    assert await store.take_nonce("w", "a", 5) == 5
    assert await store.take_nonce("w", "a", 5) == 6
    assert await store.move("p", "intend", "a", reference="0x1", nonce=5)
    assert await store.move("p", "confirm", "a", block=7)
    assert await store.move("p", "serve", "a", captured=4000, status=200)
    assert (await store.payout(new_claim("out")._replace(asset="0xAA", payer="0xA11CE", amount=300))).owner == "a"
    assert await store.move_payout("out", "drop", "a")
    await store.claim(new_claim("lost", owner="gone"))
    await asyncio.sleep(0.4)
    store._held["claims"].clear()  # pyright: ignore[reportPrivateUsage]
    await asyncio.sleep(0.4)
    taken = await store.take("lost", "claimed", "b")
    assert taken is not None
    assert (taken.owner, taken.attempts) == ("b", 0)
    assert len(cut) > 14
    assert (entry.balance, captured.balance, voided.balance) == (1500, 1440, 1440)
    assert await store.balance(ALICE) == (1440, 0)
    assert await store.verify() == []


async def test_E03_a_lost_answer_is_not_forgotten_where_a_lock_is_in_the_way(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch is committed and its connection cut; asked again it finds a lock, and each of it goes alone."""
    async with opened(database, busy_seconds=0.5) as store:
        await settle(store, new_claim("p"))
        await settle(store, new_claim("q"))
        blocker = await psycopg.AsyncConnection.connect(database)

        async def let_go() -> None:
            await asyncio.sleep(0.8)  # after the limit of the batch, before that of its first move alone
            await blocker.close()

        async def lock() -> None:
            monkeypatch.undo()  # nothing else is cut
            await blocker.execute("SELECT 1 FROM x402kit.accounts FOR UPDATE")
            letting.append(asyncio.create_task(let_go()))

        letting: list[asyncio.Task[None]] = []
        cut = _cut_after_commit(database, monkeypatch, lock)
        moves = [store.move(name, "serve", "a", captured=1) for name in "pq"]
        assert await asyncio.gather(*moves) == [True, True]
        assert len(cut) == 1
        await letting[0]


async def test_B15_E03_a_nonce_whose_answer_is_lost_for_good_is_given_to_the_next(
    store: PostgresStore, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its claim has failed, so nobody takes it over; and the wallet's later transactions would wait for it."""
    assert await store.take_nonce("w", "a", 5) == 5
    attempt = postgres_batch.Lane._attempt  # pyright: ignore[reportPrivateUsage]

    async def lose(self: Any, batch: Any) -> Any:
        await attempt(self, batch)
        raise postgres_batch._Lost from psycopg.OperationalError()  # pyright: ignore[reportPrivateUsage]

    monkeypatch.setattr(postgres_batch.Lane, "_attempt", lose)
    with pytest.raises(RailUnavailable):
        await store.take_nonce("w", "b", 5)
    monkeypatch.undo()
    taken = "SELECT nonce, holder, free FROM x402kit.nonces WHERE nonce > 5"
    assert query(database, taken) == [(6, "b", 0)]
    await store.prune(1)
    assert await store.take_nonce("w", "c", 5) == 6
    await store.prune(1)  # it has another's ticket by now
    assert query(database, taken) == [(6, "c", 0)]


async def _nothing() -> None:
    """Nobody else is there."""


def _cut_after_commit(
    database: str, monkeypatch: pytest.MonkeyPatch, first: Callable[[], Awaitable[None]] = _nothing
) -> list[int]:
    """After the next commit of each batch its connection is terminated by the server; what was cut. ``first`` happens
    between the first commit and its end.
    """
    cut: list[int] = []
    lane = postgres_batch.Lane
    attempt = lane._attempt  # pyright: ignore[reportPrivateUsage]

    async def lose(self: Any, batch: Any) -> Any:
        made = await attempt(self, batch)
        if batch[0].sql.startswith("SELECT") or batch in cut:
            return made
        if not cut:
            await first()
        cut.append(batch)
        connection = await self._pool.getconn()
        try:
            query(database, "SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
            await connection.execute("SELECT 1")
        except psycopg.Error as e:
            raise postgres_batch._Lost from e  # pyright: ignore[reportPrivateUsage]
        finally:
            await self._pool.putconn(connection)
        return made

    monkeypatch.setattr(lane, "_attempt", lose)
    return cut


async def test_E03_backends_that_are_terminated_under_load_cost_nothing(store: PostgresStore, database: str) -> None:
    await store.deposit(ALICE, 1_000_000, "d")
    stop = asyncio.Event()

    async def kill() -> None:
        sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'x402kit'"
        while not stop.is_set():
            await asyncio.to_thread(query, database, sql)
            await asyncio.sleep(0.1)

    killer = asyncio.create_task(kill())
    done = await _spend(store, 600, 16)
    stop.set()
    await killer
    assert done == 600
    assert await store.balance(ALICE) == (1_000_000 - 600 * 60, 0)
    assert await store.verify() == []


async def _spend(store: PostgresStore, count: int, tasks: int, tag: str = "") -> int:
    """Reserve 100 and capture 60, again and again; what the store can't answer is asked again. How many were made."""
    numbers = iter(range(count))
    made = 0

    async def work() -> None:
        nonlocal made
        for number in numbers:
            name = f"{tag}{number}"
            await _surely(functools.partial(store.reserve, hold(name), Spend(name, FAR)))
            entry = await _surely(functools.partial(store.capture, name, 60))
            assert entry.revenue == 60
            made += 1

    await asyncio.gather(*[work() for _ in range(tasks)])
    return made


async def _surely(ask: Callable[[], Any]) -> Any:
    for _ in range(100):
        try:
            return await ask()
        except RailUnavailable:
            await asyncio.sleep(0.1)
    raise AssertionError("the store did not come back")


async def test_J04_a_server_that_restarts_in_the_middle_loses_and_doubles_nothing() -> None:
    with PostgresServer() as server:
        async with opened(server.create(), lease_seconds=1, busy_seconds=1) as store:
            await store.deposit(ALICE, 1_000_000, "d")
            spending = asyncio.create_task(_spend(store, 1500, 16))
            for how in (signal.SIGQUIT, signal.SIGINT, signal.SIGKILL):
                await asyncio.sleep(0.3)
                await asyncio.to_thread(server.stop, how)
                await asyncio.sleep(0.2)
                await asyncio.to_thread(server.start)
            assert await spending == 1500
            assert await store.balance(ALICE) == (1_000_000 - 1500 * 60, 0)
            assert await store.verify() == []


async def test_J04_a_server_that_is_gone_is_503_within_a_bound() -> None:
    with PostgresServer() as server:
        async with opened(server.create(), busy_seconds=0.5) as store:
            await store.claim(new_claim())
            await asyncio.to_thread(server.stop, signal.SIGQUIT)
            started = time.monotonic()
            asked = [store.claim(new_claim(str(n))) for n in range(300)]
            made = await asyncio.gather(*asked, store.get("p"), return_exceptions=True)
            assert time.monotonic() - started < 20
            assert {type(one) for one in made} == {RailUnavailable}
            await asyncio.to_thread(server.start)
            found = await _surely(functools.partial(store.claim, new_claim(owner="b")))
            assert found.owner == "a"


async def test_J04_a_pool_without_a_connection_left_is_503_within_a_bound(store: PostgresStore) -> None:
    pool = store._pool  # pyright: ignore[reportPrivateUsage]
    assert pool is not None
    taken = [await pool.getconn() for _ in range(pool.max_size)]
    started = time.monotonic()
    with pytest.raises(RailUnavailable):
        await store.deposit(ALICE, 5, "d")
    assert time.monotonic() - started < 20
    for connection in taken:
        await pool.putconn(connection)
    assert (await store.deposit(ALICE, 5, "d")).balance == 5


async def test_J04_an_account_that_somebody_locks_is_503_after_a_bounded_wait(
    store: PostgresStore, database: str
) -> None:
    await store.deposit(ALICE, 5, "d")
    with psycopg.connect(database) as blocker:
        blocker.execute("SELECT 1 FROM x402kit.accounts FOR UPDATE")
        started = time.monotonic()
        with pytest.raises(RailUnavailable):
            await store.deposit(ALICE, 7, "e")
        assert time.monotonic() - started < 20
        assert (await store.balance(ALICE)).available == 5
    assert (await store.deposit(ALICE, 7, "e")).balance == 12


async def test_J04_many_accounts_that_somebody_locks_are_503_after_one_bounded_wait(database: str) -> None:
    """As ``ledger rebuild`` does, of a ledger that is large."""
    accounts = [Account("locked", str(number)) for number in range(60)]
    async with opened(database, busy_seconds=0.5) as store:
        await asyncio.gather(*[store.deposit(account, 5, f"d{account.asset}") for account in accounts])
        with psycopg.connect(database) as blocker:
            blocker.execute("LOCK TABLE x402kit.accounts IN EXCLUSIVE MODE")
            started = time.monotonic()
            asked = [store.deposit(account, 7, f"e{account.asset}") for account in accounts]
            made = await asyncio.gather(*asked, return_exceptions=True)
            assert time.monotonic() - started < 10
        assert {type(one) for one in made} == {RailUnavailable}
        assert {await store.balance(account) for account in accounts} == {(5, 0)}


async def test_J04_one_account_that_somebody_locks_keeps_nobody_elses_money(database: str) -> None:
    accounts = [Account("other", str(number)) for number in range(30)]
    async with opened(database, busy_seconds=0.5) as store:
        await asyncio.gather(*[store.deposit(account, 5, f"d{account.asset}") for account in (*accounts, ALICE)])
        with psycopg.connect(database) as blocker:
            blocker.execute("SELECT 1 FROM x402kit.accounts WHERE owner = %s FOR UPDATE", (ALICE.owner,))
            asked = [
                store.deposit(account, 7, f"{account.owner}{number}")
                for number, other in enumerate(accounts)
                for account in (ALICE, other)
            ]
            started = time.monotonic()
            made = await asyncio.gather(*asked, return_exceptions=True)
            assert time.monotonic() - started < 10
        assert {type(one).__name__ for one in made[::2]} == {"RailUnavailable"}
        assert {type(one).__name__ for one in made[1::2]} == {"Entry"}
        assert await store.balance(ALICE) == (5, 0)


async def test_J05_leases_are_kept_alive_where_their_connection_can_only_read(database: str) -> None:
    """As of a server that was the one to write to, behind an address that stays."""
    name = database.rpartition("/")[2]
    async with opened(database, lease_seconds=0.6) as store:
        await store.deposit(ALICE, 1000, "d")
        query(database, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await store.reserve(hold("1"))
        await asyncio.sleep(0.5)  # its thread has connected
        with psycopg.connect(database, autocommit=True) as operator:
            operator.execute("SET default_transaction_read_only = off")
            operator.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only".encode())
        await store.reserve(hold("2"))
        await asyncio.sleep(1.5)  # more than two leases
        assert await store.expire(10) == []
        assert await store.balance(ALICE) == (800, 200)


async def test_J03_a_database_that_is_read_only_is_503_and_changes_nothing(store: PostgresStore, database: str) -> None:
    name = database.rpartition("/")[2]
    query(database, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    query(database, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'x402kit'")
    with pytest.raises(RailUnavailable):
        await store.claim(new_claim())
    assert await store.get("p") is None
    with psycopg.connect(database, autocommit=True) as operator:
        operator.execute("SET default_transaction_read_only = off")
        operator.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only".encode())
    # A connection that was made meanwhile goes with its first failure.
    assert (await _surely(functools.partial(store.claim, new_claim()))).owner == "a"


@pytest.mark.parametrize("bad", ["\0", "\ud800"], ids=ascii)
async def test_one_bad_value_does_not_spoil_what_waits_with_it(store: PostgresStore, bad: str) -> None:
    asked = asyncio.gather(
        store.deposit(ALICE, 5, "a"),
        store.deposit(ALICE, 5, "b", reference=bad),
        store.deposit(ALICE, 2**63 - 1, "c"),
        store.deposit(ALICE, 5, "d"),
        return_exceptions=True,
    )
    made = await asyncio.wait_for(asked, 20)
    assert [type(one).__name__ for one in made] == ["Entry", "RailUnavailable", "RailUnavailable", "Entry"]
    assert await store.balance(ALICE) == (10, 0)


@pytest.mark.parametrize("bad", ["\0", "\ud800"], ids=ascii)
async def test_E03_a_move_that_went_out_before_a_bad_value_is_told_as_made(store: PostgresStore, bad: str) -> None:
    """The value breaks off what goes with it; what was sent before is committed by then, and is asked again."""
    await store.claim(new_claim())
    asked = asyncio.gather(
        store.move("p", "intend", "a", reference="0x1"), store.note("q", reference=bad), return_exceptions=True
    )
    moved, refused = await asyncio.wait_for(asked, 20)
    assert moved is True
    assert isinstance(refused, RailUnavailable)
