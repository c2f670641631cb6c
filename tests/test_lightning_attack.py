"""Attacks on what is paid over Lightning: the ways that money, or a payer's right to it, could be lost or had twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.support.lightning_till import Bought, WaryNode, opened
from x402kit.devnet import LightningDevnet


class PolledNode(WaryNode):
    """Tells of a payment a moment later, as the adapters do that ask their node again and again."""

    async def subscribe(self) -> AsyncGenerator[str]:
        async for payment_hash in super().subscribe():
            await asyncio.sleep(0.3)
            yield payment_hash


async def test_C02_an_invoice_that_another_process_has_seen_paid_is_not_offered_again(
    lightning: LightningDevnet, tmp_path: Path
) -> None:
    ledger = tmp_path / "payments.db"
    late = PolledNode(lightning.seller)
    async with opened(lightning, ledger) as one, opened(lightning, ledger, node=late) as other:
        bought = await other.buy("/fixed")
        one.bought[bought.offer.hash] = bought
        assert (await one.show("/fixed", bought.l402)).status == 200
        await asyncio.sleep(0.6)
        assert (await other.offer("/fixed")).hash != bought.offer.hash


# J05: the ledger is an older one than the payer remembers


async def _bought(lightning: LightningDevnet, ledger: Path, *paths: str) -> list[Bought]:
    """Paid at a ledger that is lost afterwards."""
    async with opened(lightning, ledger) as till:
        return [await till.buy(path) for path in paths]


@pytest.mark.parametrize("way", ["l402", "payment"])
async def test_J05_what_was_paid_on_a_lost_invoice_is_asked_of_the_node(
    lightning: LightningDevnet, tmp_path: Path, way: str
) -> None:
    (bought,) = await _bought(lightning, tmp_path / "lost.db", "/fixed")
    async with opened(lightning, tmp_path / "restored.db") as till:
        till.bought[bought.offer.hash] = bought
        shown = bought.l402 if way == "l402" else bought.payment
        assert (await till.ask("/fixed", shown)).status == 402  # nothing was ever lost: another ledger's
        assert await till.paywall.recover()
        if way == "l402":
            assert (await till.ask("/other", shown)).status == 402  # for another request
        till.node.down = True
        assert (await till.ask("/fixed", shown)).status == 503
        till.node.down = False
        answers = await asyncio.gather(*[till.show("/fixed", shown) for _ in range(5)])
        assert [answer.status for answer in answers].count(200) == (5 if way == "l402" else 1)
        assert len(till.runs) == 1
        assert await till.left(bought) == 0


async def test_J05_a_lost_pass_is_good_for_its_calls(lightning: LightningDevnet, tmp_path: Path) -> None:
    (bought,) = await _bought(lightning, tmp_path / "lost.db", "/three")
    async with opened(lightning, tmp_path / "restored.db") as till:
        till.bought[bought.offer.hash] = bought
        assert await till.paywall.recover()
        await till.reprice("50000")
        assert [(await till.ask("/three", bought.l402)).status for _ in range(4)] == [200, 200, 200, 402]


async def test_J05_what_the_books_know_is_not_lost(
    lightning: LightningDevnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(lightning, tmp_path / "payments.db") as till:
        bought = await till.buy("/fixed")
        assert (await till.show("/fixed", bought.l402)).status == 200
        assert await till.paywall.recover()
        now = time.time()
        for days in (2, 4):
            monkeypatch.setattr(time, "time", lambda days=days: now + days * 86_400)
            await till.tidy()
        assert await till.claim(bought) is None
        assert (await till.ask("/fixed", bought.l402)).status == 402
        assert len(till.runs) == 1
