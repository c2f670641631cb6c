"""What is the SQLite store's own: the file, its lock and its limits, a ledger in memory (ledger/)."""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.test_store import ALICE, FAR, hold, new_claim, settle
from x402kit.errors import ConfigError, LedgerUnreachable, RailUnavailable, TooManyRequests
from x402kit.ledger import files, sqlite_file
from x402kit.ledger.open import store_of
from x402kit.ledger.sqlite import SQLiteStore


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteStore]:
    made = SQLiteStore(tmp_path / "claims.db")
    await made.start()
    yield made
    await made.close()


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


async def test_J04_a_file_that_is_locked_at_the_start_is_busy_and_no_wrong_setting(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "claims.db", busy_seconds=0.05)
    await store.start()
    await store.close()
    blocker = sqlite3.connect(tmp_path / "claims.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnreachable, match="locked"):
        await store.start()
    blocker.execute("ROLLBACK")
    blocker.close()
    await store.start()
    assert (await store.claim(new_claim())).owner == "a"
    await store.close()


async def test_C02_a_start_gets_its_turn_among_processes_that_write_all_the_time(tmp_path: Path) -> None:
    """SQLite's own way of waiting looks ten times a second, and finds the file locked each time."""
    store = SQLiteStore(tmp_path / "claims.db", busy_seconds=1)
    await store.start()
    await store.close()
    over = threading.Event()

    def write() -> None:
        busy = sqlite3.connect(tmp_path / "claims.db", isolation_level=None, timeout=5)
        while not over.is_set():
            busy.execute("BEGIN IMMEDIATE")
            over.wait(0.15)
            busy.execute("COMMIT")
            time.sleep(0.006)
        busy.close()

    writing = threading.Thread(target=write)
    writing.start()
    try:
        for _ in range(4):
            await store.start()
            await store.close()
    finally:
        over.set()
        writing.join()


async def test_J04_what_waits_for_the_chain_alone_is_not_leased_again_by_a_beat(store: SQLiteStore) -> None:
    """Anybody may look at the chain for it at once, and whoever shows the payment again."""
    await store.claim(new_claim())
    assert await store.move("p", "intend", "a", reference="0x1", intent=b"raw")
    store._next_beat = 0  # pyright: ignore[reportPrivateUsage]  # the same transaction has a beat
    assert await store.move("p", "lose", "a", next_check=0)
    found = await store.take("p", "unknown", "b")
    assert found is not None
    assert found.owner == "b"


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


async def test_a_place_that_cannot_be_written_is_an_error_at_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match="can't be opened"):
        await SQLiteStore(tmp_path / "file" / "claims.db").start()


async def test_I12_a_start_that_runs_out_of_descriptors_leaves_nothing_and_can_be_made_again(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "claims.db", busy_seconds=0.05)
    await store.start()
    await store.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/dev/fd")))
    gaps = [os.dup(0)]
    while gaps[-1] <= highest:
        gaps.append(os.dup(0))
    threads, opened, refused = threading.active_count(), len(os.listdir("/dev/fd")), 0
    for left in range(12):
        resource.setrlimit(resource.RLIMIT_NOFILE, (gaps[-1] + 1 + left, hard))
        try:
            await store.start()
            await store.close()
        except ConfigError:
            refused += 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (threading.active_count(), len(os.listdir("/dev/fd"))) == (threads, opened)
        await store.start()
        async with asyncio.timeout(5):
            assert await store.get("p") is None
        await store.close()
    for gap in gaps:
        os.close(gap)
    assert 1 < refused < 12


async def test_J07_who_does_not_see_the_boot_id_takes_no_lease_from_who_does(
    store: SQLiteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a command in a stricter sandbox than the server's: it must not end what the server works on."""
    await store.deposit(ALICE, 100, "d")
    await store.reserve(hold("1"))
    await settle(store, new_claim())
    monkeypatch.setattr(sqlite_file, "boot_id", lambda: "")
    other = SQLiteStore(tmp_path / "claims.db")
    await other.start()
    assert await other.expire(FAR) == []
    assert await other.take("p", "settled", "b") is None
    await other.close()


async def test_E01_an_index_that_is_damaged_is_found_and_so_is_what_it_let_pass(tmp_path: Path) -> None:
    place = tmp_path / "claims.db"
    store = SQLiteStore(place)
    await store.start()
    for number in range(5):
        await store.deposit(ALICE, 5, f"payment {number}")
    await store.close()
    data = bytearray(place.read_bytes())
    with sqlite3.connect(place) as connection:
        sql = "SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_entries_1'"
        page = connection.execute(sql).fetchone()[0] - 1
    connection.close()
    found = data.index(b"deposit:payment 4", page * 4096, (page + 1) * 4096)
    data[found + 16] = ord("z")
    place.write_bytes(data)
    await store.start()
    (fault,) = await store.verify()
    assert fault.what == "the file is damaged: row 5 missing from index sqlite_autoindex_entries_1"
    assert (await store.deposit(ALICE, 5, "payment 4")).balance == 30  # counted twice
    assert {fault.what for fault in await store.verify()} == {fault.what, "two entries have the same key"}
    await store.close()


async def test_a_ledger_without_a_name_is_refused() -> None:
    """To SQLite it is a file of its own for each connection, gone with it."""
    with pytest.raises(ConfigError, match="empty"):
        store_of("")
