"""Many processes on one account: no overdraft, the log adds up, and a process that is killed takes nothing with it."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter, defaultdict
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.support.ledger_load import ACCOUNT, Load, Told, recover, start, told
from tests.support.stores import Place
from x402kit.ledger.port import Store
from x402kit.model import Entry

PROCESSES = 8
RESERVES = 8 * 8 * 1563
"""In all: 100 032."""
KILLS = 12
MONEY = 26_000_000
"""Too little for all of them: the last ones are refused."""


async def _ledger(place: Place, money: int) -> Store:
    store = place.open(busy_seconds=30)
    await store.start()
    await store.deposit(ACCOUNT, money, "all there is")
    return store


async def _log(store: Store) -> dict[str, Entry]:
    """The whole log of the account, by key; each key once."""
    entries = await store.entries(ACCOUNT, limit=10_000_000)
    assert len({entry.key for entry in entries}) == len(entries)
    return {entry.key: entry for entry in entries}


def _check(said: list[Told], log: dict[str, Entry]) -> None:
    """What was acknowledged stands in the log, with its amount."""
    keys = {"reserve": "reserve:", "capture": "end:", "void": "end:", "payout": "payout:", "refund": "payout-end:"}
    for line in said:
        if line.what not in keys:
            continue
        entry = log[keys[line.what] + line.id]
        assert entry.type == line.what
        amounts = {"capture": entry.revenue, "refund": entry.external}
        assert amounts.get(line.what, abs(entry.available)) == line.amount


async def _check_sums(store: Store, log: dict[str, Entry], money: int) -> None:
    """Nothing is doubled and nothing lost: every balance on the way, and the sums."""
    assert await store.verify() == []
    balance = 0
    for entry in sorted(log.values(), key=lambda entry: entry.id):
        balance += entry.available
        assert entry.balance == balance >= 0, "I2"
    sums = (await store.totals())[ACCOUNT.asset]
    refunded = sum(entry.external for entry in log.values() if entry.type == "refund")
    assert money == sums["available"] + sums["held"] + sums["revenue"] + sums["suspense"] + refunded, "I1"
    assert balance == sums["available"]


async def test_C10_J04_sixty_four_tasks_in_eight_processes_spend_one_account(place: Place, tmp_path: Path) -> None:
    store = await _ledger(place, MONEY)
    journals = [str(tmp_path / f"journal-{number}") for number in range(PROCESSES)]
    loads = [Load(place.address, path, n, RESERVES // PROCESSES) for n, path in enumerate(journals)]
    await _finished([start(load) for load in loads])
    said, log = told(journals), await _log(store)
    counts = Counter(line.what for line in said)
    assert counts["unavailable"] == 0
    assert counts["reserve"] + counts["insufficient"] == RESERVES
    assert counts["insufficient"] > 0
    kinds = Counter(entry.type for entry in log.values())
    for what in ("reserve", "capture", "void"):
        assert kinds[what] == counts[what]
    _check(said, log)
    await _check_sums(store, log, MONEY)
    await recover(store, 30)  # those that were left
    await _check_sums(store, await _log(store), MONEY)
    await store.close()


async def _finished(processes: list[BaseProcess]) -> None:
    for process in processes:
        await asyncio.to_thread(process.join, 600)
        assert process.exitcode == 0


async def test_J01_processes_killed_again_and_again_lose_and_double_nothing(place: Place, tmp_path: Path) -> None:
    rng = random.Random(1)
    money = 10**12
    store = await _ledger(place, money)
    count = 0
    journals: list[str] = []

    def another() -> BaseProcess:
        nonlocal count
        count += 1
        journals.append(str(tmp_path / f"journal-{count}"))
        return start(Load(place.address, journals[-1], count, 10**9, lease_seconds=0.5, payouts=True))

    processes = [another() for _ in range(3)]
    for kill in range(KILLS):
        await asyncio.to_thread(_until_written, journals[-1])
        await asyncio.sleep(rng.random() * 0.3)
        if kill == KILLS // 2:
            assert await store.verify() == []
        victim = rng.randrange(len(processes))
        processes[victim].kill()
        await asyncio.to_thread(processes[victim].join)
        assert processes[victim].exitcode == -signal.SIGKILL
        processes[victim] = another()
    for process in processes:
        process.kill()
        process.join()
    said, log = told(journals), await _log(store)
    _check(said, log)
    _check_unheard(said, log)
    await _check_sums(store, log, money)
    await recover(store, 20)
    log = await _log(store)
    _check(said, log)
    await _check_sums(store, log, money)
    await store.close()


def _check_unheard(said: list[Told], log: dict[str, Entry]) -> None:
    """What no journal knows was under way when its process was killed: one move of each task at the most."""
    heard = Counter(line.what for line in said)
    kinds = Counter(entry.type for entry in log.values())
    unheard: dict[str, int] = defaultdict(int)
    for what in ("reserve", "capture", "void", "payout", "refund"):
        unheard[what] = kinds[what] - heard[what]
        assert unheard[what] >= 0
    assert sum(unheard.values()) <= (KILLS + 3) * 8
    assert heard["unavailable"] == 0
    assert heard["reserve"] > 100


def _until_written(journal: str) -> None:
    """The newest process is at work."""
    end = time.monotonic() + 30
    while not (Path(journal).exists() and Path(journal).stat().st_size > 1000):
        assert time.monotonic() < end
        time.sleep(0.01)
