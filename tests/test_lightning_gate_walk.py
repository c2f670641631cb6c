"""Random walks through a shop that is paid over Lightning: whatever is tried in whatever order, nobody gets goods for
more than was paid, and nobody's money is lost.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.asking import Answer
from tests.support.lightning_till import FIXED, SERVICE, Bought, Till, chat, opened
from x402kit.devnet import LightningDevnet

FIXED_ROUTES: Final = ("/fixed", "/other", "/three", "/n/a", "/n/b")
STEPS: Final = 70
HOUR: Final = 3600


class Walk:
    """One walk. ``had`` is what goods were had for by payment hash, in msat."""

    def __init__(self, till: Till, seed: int, clock: pytest.MonkeyPatch) -> None:
        self.till, self.clock = till, clock
        self.random = random.Random(seed)
        self.bought: list[Bought] = []
        self.had: Counter[str] = Counter()
        self.ahead = 0.0

    async def step(self) -> None:
        what = self.random.random()
        if what < 0.2 or not self.bought:
            await self.buy()
        elif what < 0.8:
            await asyncio.gather(*[self.show() for _ in range(self.random.choice([1, 1, 2, 4]))])
        elif what < 0.9:
            self.till.failing = self.random.choice([0, 1, 2])
        else:
            await self.wait()

    async def buy(self) -> None:
        path = self.random.choice([*FIXED_ROUTES, "/chat", "/hour"])
        self.bought.append(await self.till.buy(path, chat(300, 600) if path == "/chat" else None))

    async def show(self) -> None:
        bought = self.random.choice(self.bought)
        path = self.random.choice([*FIXED_ROUTES, "/chat", "/hour", "/dear"])
        body: Any = chat(self.random.choice([0, 300]), 600) if path == "/chat" else None
        ways = [bought.l402, bought.narrowed(f"amount_msat={FIXED}"), bought.narrowed(f"{SERVICE}_valid_until=1")]
        if bought.offer.payment is not None:
            ways.append(bought.payment)
        way = self.random.randrange(len(ways))
        headers = ways[way] | ({"Idempotency-Key": "k"} if self.random.random() < 0.2 else {})
        answer = await self.till.ask(path, headers, body)
        assert answer.status in (200, 402, 403, 409, 500), answer
        assert way != 2 or answer.status in (402, 403, 409), "an expired token was served"
        self.count(bought, path, body, answer)

    def count(self, bought: Bought, path: str, body: Any, answer: Answer) -> None:
        if answer.status != 200 or answer.header("payment-replayed"):
            return
        assert path != "/dear"
        if path == "/hour" and bought.offer.answer.json()["accepts"][0]["resource"].endswith("/hour"):
            return  # a pass, for all calls within its time
        self.had[bought.offer.hash] += FIXED if body is None else body["use"] * 10

    async def wait(self) -> None:
        """Time goes by, and the books are tidied."""
        self.ahead += self.random.choice([60, HOUR, 8 * HOUR, 30 * HOUR])
        now = time.time()
        with self.clock.context() as patch:
            patch.setattr(time, "time", lambda: now + self.ahead)
            await self.till.tidy()


@pytest.mark.parametrize("seed", range(3))
async def test_I4_nobody_gets_more_than_was_paid_for(
    lightning: LightningDevnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    limits = {"unpaid_per_caller": 1000}
    async with opened(lightning, tmp_path / "payments.db", lightning=limits) as till:
        walk = Walk(till, seed, monkeypatch)
        for _ in range(STEPS):
            await walk.step()
        till.failing = 0
        await till.check()
        for bought in walk.bought:
            paid, left = bought.offer.amount, await till.left(bought)
            claim = await till.claim(bought)
            kept = claim.amount if claim is not None and claim.state == "settled" else 0
            assert walk.had[bought.offer.hash] + left + kept <= paid, "goods for more than was paid"
