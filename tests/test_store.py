"""The embedded claim store: guarded moves, leases, group commit, and what it refuses (ledger/)."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import pytest

from x402kit.errors import ConfigError, RailUnavailable, TooManyRequests
from x402kit.ledger import files
from x402kit.ledger.rules import MOVES, STATES, may
from x402kit.ledger.sqlite import SQLiteStore
from x402kit.model import Claim

FAR = 2_000_000_000


def new_claim(payment_id: str = "p", owner: str = "a", payer: str = "0xpayer") -> Claim:
    return Claim(
        payment_id,
        "claimed",
        b"f" * 32,
        b"c" * 32,
        "r",
        "eip155:8453",
        "0xa",
        "0xb",
        payer,
        10_000,
        FAR,
        1,
        2,
        owner=owner,
    )


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteStore]:
    made = SQLiteStore(tmp_path / "claims.db", lease_seconds=0.3)
    await made.start()
    yield made
    await made.close()


async def settle(store: SQLiteStore, claim: Claim) -> None:
    assert (await store.claim(claim)).owner == claim.owner
    assert await store.move(claim.payment_id, "intend", claim.owner, reference="0x1", intent=b"raw")
    assert await store.move(claim.payment_id, "confirm", claim.owner, block=7)


async def test_C01_of_many_claims_for_one_payment_one_wins(store: SQLiteStore) -> None:
    rows = await asyncio.gather(*[store.claim(new_claim(owner=f"o{i}")) for i in range(50)])
    assert len({row.owner for row in rows}) == 1


async def test_every_move_starts_only_where_the_rules_say(store: SQLiteStore) -> None:
    for move, (_, end) in MOVES.items():
        for number, state in enumerate(STATES):
            claim = new_claim(f"{move}-{number}", payer=f"{move}{number}")
            await store.claim(claim)
            await store.note(claim.payment_id, state=state)
            assert await store.move(claim.payment_id, move, "a") is may(move, state)
            found = await store.get(claim.payment_id)
            assert found is not None
            assert found.state == (end if may(move, state) else state)


async def test_a_move_by_who_lost_the_claim_is_refused(store: SQLiteStore) -> None:
    await store.claim(new_claim())
    assert not await store.move("p", "intend", "somebody else")


async def test_a_failed_claim_can_be_claimed_again_and_no_other(store: SQLiteStore) -> None:
    await store.claim(new_claim())
    await store.move("p", "fail", "a", reason="insufficient_funds")
    again = await store.claim(new_claim(owner="b"))
    assert (again.owner, again.state, again.reason) == ("b", "claimed", "")
    assert (await store.claim(new_claim(owner="c"))).owner == "b"


async def test_a_lease_is_kept_alive_by_the_writer_and_ends_with_its_release(store: SQLiteStore) -> None:
    await settle(store, new_claim())
    await asyncio.sleep(0.7)  # more than two leases: only the heartbeat can have kept it
    assert await store.take("p", "settled", "b") is None
    await store.release("p", "a")
    taken = await store.take("p", "settled", "b")
    assert taken is not None
    assert (taken.owner, taken.attempts) == ("b", 1)


async def test_C08_a_claim_outlives_the_process_that_made_it(store: SQLiteStore, tmp_path: Path) -> None:
    await settle(store, new_claim())
    await store.close()
    other = SQLiteStore(tmp_path / "claims.db")
    await other.start()
    found = await other.get("p")
    assert found is not None
    assert (found.state, found.block, found.reference, found.intent) == ("settled", 7, "0x1", b"raw")
    assert await other.take("p", "settled", "b") is not None  # closing gave the lease back
    await other.close()


async def test_due_lists_what_nobody_works_on(store: SQLiteStore) -> None:
    await store.claim(new_claim("working", "a", "1"))
    await store.claim(new_claim("lost", "a", "2"))
    await store.move("lost", "intend", "a")
    await store.move("lost", "lose", "a", next_check=50)
    await store.claim(new_claim("done", "a", "3"))
    await store.move("done", "confirm", "a", final=1)
    await store.claim(new_claim("shallow", "a", "4"))
    await store.move("shallow", "confirm", "a", final=0, next_check=70)
    assert [claim.payment_id for claim in await store.due(60)] == ["lost"]
    assert [claim.payment_id for claim in await store.due(80)] == ["lost", "shallow"]


async def test_unserved_settlements_are_listed_after_their_deadline(store: SQLiteStore) -> None:
    await settle(store, new_claim())
    assert await store.expired(5) == []  # its lease lives
    await store.release("p", "a")
    assert [claim.payment_id for claim in await store.expired(5)] == ["p"]
    assert await store.expired(1) == []


async def test_C07_claims_are_forgotten_only_after_the_payment_can_no_longer_land(store: SQLiteStore) -> None:
    await settle(store, new_claim())
    await store.move("p", "serve", "a", body=b"goods", kept_until=100, final=1)
    assert await store.prune(200) == 0
    found = await store.get("p")
    assert found is not None
    assert found.body is None  # the kept body goes, the claim stays
    assert await store.prune(FAR + 60) == 0  # the chain's clock may be behind ours
    assert await store.prune(FAR + 3601) == 1
    assert await store.get("p") is None


async def test_K04_at_its_limit_the_store_refuses_new_claims_and_keeps_the_live_ones(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "claims.db", max_claims=3)
    await store.start()
    for number in range(4):
        await settle(store, new_claim(f"p{number}", payer=str(number)))
    with pytest.raises(TooManyRequests):
        await store.claim(new_claim("one more"))
    assert await store.get("p0") is not None
    await store.close()


async def test_K04_a_claim_that_stays_does_not_count_for_those_that_were_forgotten_since(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "claims.db", max_claims=3)
    await store.start()
    await settle(store, new_claim("never shown again", payer="one"))
    for number in range(9):  # there is always a new one
        await settle(store, new_claim(f"p{number}", payer=str(number)))
        await store.move(f"p{number - 1}", "serve", "a", kept_until=0, final=1)
        assert await store.prune(FAR + 3601) == min(number, 1)
    assert await store.get("never shown again") is not None
    await settle(store, new_claim("the last place"))
    with pytest.raises(TooManyRequests):
        await store.claim(new_claim("one more"))
    await store.close()


async def test_I13_one_payer_cannot_fill_the_store_with_open_payments(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "claims.db", max_open_per_payer=2)
    await store.start()
    await store.claim(new_claim("p0"))
    await store.claim(new_claim("p1"))
    with pytest.raises(TooManyRequests):
        await store.claim(new_claim("p2"))
    assert (await store.claim(new_claim("p2", payer="somebody else"))).owner == "a"
    await store.close()


async def test_J03_a_full_disk_is_503_and_changes_nothing(store: SQLiteStore) -> None:
    await store.claim(new_claim())
    await store._write(lambda c: c.execute("PRAGMA max_page_count = 1").fetchone())  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(RailUnavailable):
        await store.claim(new_claim("q", payer="x" * 1_000_000))
    found = await store.get("p")
    assert found is not None
    assert found.state == "claimed"
    assert await store.get("q") is None


async def test_J04_a_locked_file_is_503_after_a_bounded_wait(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "claims.db", busy_seconds=0.05)
    await store.start()
    blocker = sqlite3.connect(tmp_path / "claims.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(RailUnavailable):
        await store.claim(new_claim())
    blocker.execute("ROLLBACK")
    blocker.close()
    assert (await store.claim(new_claim())).owner == "a"
    await store.close()


async def test_a_cancelled_caller_does_not_undo_or_disturb_a_commit(store: SQLiteStore) -> None:
    task = asyncio.ensure_future(store.claim(new_claim()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (await store.claim(new_claim(owner="b"))).owner == "a"


async def test_J02_money_is_written_with_synchronous_full_in_wal(store: SQLiteStore) -> None:
    assert await store._write(lambda c: c.execute("PRAGMA synchronous").fetchone()) == (2,)  # pyright: ignore[reportPrivateUsage]
    assert await store._write(lambda c: c.execute("PRAGMA journal_mode").fetchone()) == ("wal",)  # pyright: ignore[reportPrivateUsage]


async def test_the_file_is_for_its_owner_alone(store: SQLiteStore, tmp_path: Path) -> None:
    assert (tmp_path / "claims.db").stat().st_mode & 0o077 == 0


async def test_J08_the_schema_can_be_applied_again(tmp_path: Path) -> None:
    first, second = (SQLiteStore(tmp_path / "claims.db") for _ in range(2))
    await first.start()
    secret = await first.secret()
    await second.start()
    assert await second.secret() == secret
    assert len(secret) == 32
    await first.close()
    await second.close()


async def test_B15_nonces_are_given_once_and_a_freed_one_first(store: SQLiteStore) -> None:
    taken = await asyncio.gather(*[store.take_nonce("w", f"p{i}", 5) for i in range(20)])
    assert sorted(taken) == list(range(5, 25))
    await store.free_nonces("somebody else", "w", 9)
    await store.free_nonces("p4", "w", 9)
    assert await store.take_nonce("w", "again", 5) == 9
    assert await store.take_nonce("w", "again", 5) == 25
    assert await store.take_nonce("another", "p", 0) == 0


async def test_B15_a_freed_nonce_that_the_chain_has_passed_is_not_given(store: SQLiteStore) -> None:
    assert await store.take_nonce("w", "a", 5) == 5
    await store.free_nonces("a")
    assert await store.take_nonce("w", "b", 8) == 8


def _in_child(store: SQLiteStore, answer: SimpleQueue[str]) -> None:
    async def ask() -> None:
        try:
            await store.get("p")
        except ConfigError as e:
            answer.put(str(e))

    asyncio.run(ask())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_J06_a_process_that_forked_after_opening_is_refused(store: SQLiteStore) -> None:
    context = multiprocessing.get_context("fork")
    answer: SimpleQueue[str] = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(store, answer))
    child.start()
    child.join(20)
    assert "forked" in answer.get()


def _open_again_and_again(path: Path, faults: SimpleQueue[str]) -> None:
    async def work() -> None:
        for _ in range(15):
            store = SQLiteStore(path)
            try:
                await store.start()
                await store.close()
            except ConfigError as e:
                faults.put(str(e))

    asyncio.run(work())


def test_C02_workers_that_start_together_all_open_the_ledger(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    faults: SimpleQueue[str] = context.SimpleQueue()
    workers = [context.Process(target=_open_again_and_again, args=(tmp_path / "new.db", faults)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert faults.empty()


def test_J06_a_network_file_system_is_known_by_its_mount() -> None:
    mounts = "/dev/sda / ext4 rw 0 0\nnas:/x /mnt/my\\040nas nfs4 rw 0 0\n"
    assert files.file_system("/mnt/my nas/payments.db", mounts) == "nfs4"
    assert files.file_system("/mnt/my nas2/payments.db", mounts) == "ext4"
    assert files.file_system("/var/payments.db", mounts) == "ext4"


def test_C02_a_second_worker_with_a_ledger_in_memory_is_refused(tmp_path: Path) -> None:
    worker = """
        import asyncio, sys
        from x402kit.errors import ConfigError
        from x402kit.ledger.sqlite import SQLiteStore
        async def main():
            store = SQLiteStore(":memory:")
            try:
                await store.start()
            except ConfigError as e:
                print("refused", e)
                return
            print("started", flush=True)
            sys.stdin.readline()
            await store.close()
        asyncio.run(main())
    """
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(worker))
    command = [sys.executable, str(script)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert first.stdout is not None
    assert first.stdout.readline() == "started\n"
    second = subprocess.run(command, input="", capture_output=True, text=True, check=True)
    assert second.stdout.startswith("refused a ledger in memory can't serve more than one worker")
    first.communicate("\n", timeout=20)


async def test_an_unopened_store_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not open"):
        await SQLiteStore(tmp_path / "claims.db").get("p")


async def test_a_place_that_cannot_be_written_is_an_error_at_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match="can't be opened"):
        await SQLiteStore(tmp_path / "file" / "claims.db").start()
