"""Processes that spend one account as fast as they can, and write down what they were told.

A journal's line is written after the answer: what stands there was acknowledged, and must never be lost (J01).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.processes import FORKED
from tests.support.stores import open_store
from x402kit.errors import InsufficientBalance, RailUnavailable
from x402kit.ledger.port import Store
from x402kit.model import Account, Claim, Hold, Spend

__all__ = ["ACCOUNT", "Load", "Told", "recover", "start", "told"]

ACCOUNT = Account.of("eip155:8453", "0xUSDC", "0xPayer")
FAR = 4_000_000_000


class Load(NamedTuple):
    """What one process does: ``reserves`` in all, by ``tasks`` at once."""

    address: str
    journal: str
    seed: int
    reserves: int
    tasks: int = 8
    lease_seconds: float = 15
    payouts: bool = False


class Told(NamedTuple):
    """A journal's line."""

    what: str
    id: str
    amount: int


def start(load: Load) -> BaseProcess:
    """A process of its own; it ends with status 0 when it did all it was to do."""
    process = FORKED.Process(target=_run, args=(load,), daemon=True)
    process.start()
    return process


def told(journals: list[str]) -> list[Told]:
    """All that was acknowledged. The last line of a process that was killed may be cut off."""
    lines = [line for path in journals if Path(path).exists() for line in Path(path).read_text().splitlines(True)]
    return [Told(*json.loads(line)) for line in lines if line.endswith("\n")]


def _run(load: Load) -> None:
    asyncio.run(_work(load))


async def _work(load: Load) -> None:
    store = open_store(load.address, lease_seconds=load.lease_seconds, busy_seconds=30)
    await store.start()
    journal = os.open(load.journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def say(*line: Any) -> None:
        os.write(journal, json.dumps(line).encode() + b"\n")

    each = load.reserves // load.tasks
    tasks = [_Task(store, say, f"{load.seed}-{number}", load.payouts) for number in range(load.tasks)]
    await asyncio.gather(*[task.run(each) for task in tasks])
    await store.close()


class _Task:
    def __init__(self, store: Store, say: Any, name: str, payouts: bool) -> None:
        self._store = store
        self._say = say
        self._name = f"{os.getpid()}-{name}"
        self._payouts = payouts
        self._rng = random.Random(name)

    async def run(self, reserves: int) -> None:
        for number in range(reserves):
            try:
                if self._payouts and self._rng.random() < 0.05:
                    await self._pay_out(f"{self._name}-{number}")
                else:
                    await self._spend(f"{self._name}-{number}")
            except InsufficientBalance:
                self._say("insufficient", "", 0)
            except RailUnavailable:
                self._say("unavailable", "", 0)

    async def _spend(self, name: str) -> None:
        store, amount, fate = self._store, self._rng.randint(1, 1000), self._rng.random()
        spend = Spend(name, FAR) if fate < 0.5 else None
        hold = await store.reserve(Hold(name, *ACCOUNT, amount, "me", 1, 1), spend)
        assert hold.amount == amount
        self._say("reserve", name, amount)
        if fate < 0.6:
            cost = self._rng.randint(0, 1200)
            entry = await store.capture(name, cost, holder="me")
            self._say("capture", name, entry.revenue)
        elif fate < 0.85:
            await store.void(name, holder="me")
            self._say("void", name, amount)

    async def _pay_out(self, name: str) -> None:
        store, amount = self._store, self._rng.randint(1, 1000)
        who = ("eip155:8453", "0xUSDC", "", "0xPayer")
        await store.payout(Claim(name, "claimed", b"", b"", "", *who, amount, FAR, 1, 2, owner=self._name))
        self._say("payout", name, amount)
        assert await store.move_payout(name, "intend", self._name)
        assert await store.move_payout(name, "confirm", self._name, final=1)
        self._say("refund", name, amount)


async def recover(store: Store, seconds: float) -> None:
    """What every process does now and then: end what the dead left behind, until nothing is held or on its way."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        await store.expire(FAR, limit=10_000)
        for row in await store.due_payouts(FAR - 1000):
            if await store.take_payout(row.payment_id, row.state, "recovery") is not None:
                move = "drop" if row.state == "claimed" else "confirm"
                await store.move_payout(row.payment_id, move, "recovery", final=1)
        totals = (await store.totals())[ACCOUNT.asset]
        if totals["held"] == totals["suspense"] == 0:
            return
        assert loop.time() < end, totals
        await asyncio.sleep(0.1)
