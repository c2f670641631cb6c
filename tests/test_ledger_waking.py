"""The way back from the store's thread to the event loops that wait for it."""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from x402kit.errors import RailUnavailable
from x402kit.ledger.waking import Waking
from x402kit.ledger.worker import Worker

ROUNDS = 200


def descriptors() -> int:
    return len(os.listdir("/dev/fd"))


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    made = Worker(lambda: sqlite3.connect(tmp_path / "w.db", isolation_level=None))
    made.start()
    yield made
    made.stop()


async def ask(worker: Worker, count: int) -> list[int]:
    """So many operations, the half of them at once; each answers its own number."""

    async def one(number: int) -> int:
        (found,) = await worker.submit(lambda c: c.execute("SELECT ?", (number,)).fetchone())
        return int(found)

    at_once = await asyncio.gather(*[one(number) for number in range(count // 2)])
    return [*at_once, *[await one(number) for number in range(count // 2, count)]]


async def test_what_is_given_by_many_threads_is_taken_in_the_loop_in_each_ones_order() -> None:
    taken: list[tuple[int, int]] = []
    threads_seen: set[int] = set()
    done = asyncio.Event()

    def take(value: tuple[int, int]) -> None:
        taken.append(value)
        threads_seen.add(threading.get_ident())
        if len(taken) == 4 * ROUNDS:
            done.set()

    waking = Waking(asyncio.get_running_loop(), take)

    def give(thread: int) -> None:
        for number in range(ROUNDS):
            waking.give((thread, number))

    threads = [threading.Thread(target=give, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    async with asyncio.timeout(10):
        await done.wait()
    for thread in threads:
        thread.join()
    waking.close()
    assert threads_seen == {threading.get_ident()}
    for giver in range(4):
        assert [number for found, number in taken if found == giver] == list(range(ROUNDS))


async def test_what_was_given_before_the_end_is_taken_by_the_end() -> None:
    taken: list[int] = []
    waking = Waking(asyncio.get_running_loop(), taken.append)

    def give() -> None:
        for number in range(5):
            waking.give(number)

    giver = threading.Thread(target=give)
    giver.start()
    giver.join()
    waking.close()
    assert taken == [0, 1, 2, 3, 4]


async def test_a_descriptor_that_is_closed_is_never_written_to_again() -> None:
    """Its number may be a socket's by then; what is given later still arrives."""
    taken: list[int] = []
    waking = Waking(asyncio.get_running_loop(), taken.append)
    before = descriptors()
    waking.close()
    waking.close()
    assert descriptors() == before - 1
    reading, writing = os.pipe()  # takes the number that was given back
    try:
        waking.give(1)
        os.set_blocking(reading, False)
        with pytest.raises(BlockingIOError):
            os.read(reading, 8)
    finally:
        os.close(reading)
        os.close(writing)
    await asyncio.sleep(0)
    assert taken == [1]


def test_without_a_free_descriptor_it_goes_the_standard_way() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    loop = asyncio.new_event_loop()
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        waking: Waking[int] = Waking(loop, lambda _: loop.stop())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    threading.Timer(0.01, waking.give, (1,)).start()
    loop.run_forever()  # until what was given ends it
    waking.close()
    loop.close()
    waking.give(2)  # whoever waited is gone


def test_a_loop_that_waits_for_no_descriptors_is_served_all_the_same(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_reader(*_: object) -> None:
        raise NotImplementedError  # as the loops of other systems do

    monkeypatch.setattr(asyncio.SelectorEventLoop, "add_reader", no_reader)
    before = descriptors()
    loop = asyncio.new_event_loop()
    try:
        assert loop.run_until_complete(ask(worker, 40)) == list(range(40))
    finally:
        loop.close()
    assert descriptors() == before


def test_loops_that_come_and_go_leave_no_descriptor(worker: Worker) -> None:
    asyncio.run(ask(worker, 2))
    before = descriptors()
    for _ in range(5):
        assert asyncio.run(ask(worker, 20)) == list(range(20))
    assert descriptors() == before


def test_loops_in_several_threads_each_get_their_own_answers(worker: Worker) -> None:
    found: dict[int, list[int]] = {}

    def run(thread: int) -> None:
        found[thread] = asyncio.run(ask(worker, 100))

    threads = [threading.Thread(target=run, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {thread: list(range(100)) for thread in range(4)}


def test_E03_loops_that_come_and_go_in_many_threads_at_once_lose_no_answer(worker: Worker) -> None:
    """Each one's first operation tidies up after the loops that have ended."""
    faults: list[BaseException] = []

    def run() -> None:
        try:
            for _ in range(150):
                assert asyncio.run(ask(worker, 2)) == [0, 1]
        except BaseException as e:  # noqa: BLE001  # told below, in the thread of the test
            faults.append(e)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=run) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert faults == []


async def test_I12_who_asks_a_store_that_has_stopped_leaves_no_descriptor(tmp_path: Path) -> None:
    before = descriptors()
    for _ in range(3):
        worker = Worker(lambda: sqlite3.connect(tmp_path / "w.db", isolation_level=None))
        worker.start()
        assert await ask(worker, 2) == [0, 1]
        worker.stop()
        with pytest.raises(RailUnavailable):
            await ask(worker, 2)
    assert descriptors() == before


@pytest.mark.parametrize("turns", range(1, 6), ids=lambda turns: f"after {turns} turns")
async def test_what_is_under_way_when_the_store_stops_is_answered(tmp_path: Path, turns: int) -> None:
    """Asked for, handed over, or executed by then."""
    before = descriptors()
    worker = Worker(lambda: sqlite3.connect(tmp_path / "w.db", isolation_level=None))
    worker.start()
    asked = [asyncio.ensure_future(ask(worker, 2)) for _ in range(20)]
    for _ in range(turns):
        await asyncio.sleep(0)
    worker.stop()
    async with asyncio.timeout(5):
        for one in asked:
            with pytest.raises(RailUnavailable):  # its last operation came after the stop; none before it hangs
                await one
    assert descriptors() == before
