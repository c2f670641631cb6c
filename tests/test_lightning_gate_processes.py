"""Paid over Lightning at several processes of one ledger, and at processes that are killed on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest

from tests.support.lightning_processes import SHOWING, Street, opened
from tests.support.lightning_till import FIXED
from x402kit.devnet import LightningDevnet


@pytest.fixture
async def street(lightning: LightningDevnet, tmp_path: Path) -> AsyncGenerator[Street]:
    async with opened(lightning, tmp_path) as made:
        yield made


async def test_C02_thirty_two_at_two_processes_are_one_run(street: Street) -> None:
    await street.start()
    await street.start()
    bought = await street.buy()
    ways = (bought.l402, bought.payment)
    answers = await asyncio.gather(*[street.show(ways[n // 2 % 2], number=n % 2) for n in range(32)])
    assert {answer.status for answer in answers} <= {200, 409}
    assert street.runs == {bought.offer.hash: 1}
    for number in (0, 1):
        again = await street.show(bought.l402, number=number)
        assert (again.status, again.header("payment-replayed")) == (200, "true")
    await street.settled_down()


async def test_C02_a_pass_is_spent_once_over_all_processes(street: Street) -> None:
    await street.start()
    await street.start()
    bought = await street.buy("/three")
    assert (await street.decided(bought.l402, "/three")).status == 200
    answers = await asyncio.gather(*[street.show(bought.l402, f"/three?{n}", number=n % 2) for n in range(16)])
    assert sorted(answer.status for answer in answers) == [200, 200] + [402] * 14
    assert street.runs == {bought.offer.hash: 3}
    await street.settled_down()


@pytest.mark.parametrize("step", ["-store.get", *SHOWING])
async def test_J01_killed_on_the_way_and_the_payer_comes_back(street: Street, step: str) -> None:
    await street.start(step, deaf=True)
    bought = await street.buy()
    try:
        first = (await street.show(bought.l402)).status
    except httpx.TransportError:
        first = 0
    street.killed()
    await street.start()
    last = await street.decided(bought.l402)
    assert (last.status, last.json()) == (200, {"goods": "/fixed"})
    if step == "response":
        assert (first, last.header("payment-replayed")) == (200, "true")
    assert street.runs[bought.offer.hash] <= 2  # a run whose end was not written down is made again, for no more money
    (claim,) = street.claims()
    assert (claim.state, claim.amount, claim.captured) == ("served", FIXED, FIXED)
    await street.settled_down()


@pytest.mark.parametrize("step", ["store.claim", "store.note_invoice", "-store.claim"])
async def test_J01_the_watcher_is_killed_and_the_payer_never_comes(street: Street, step: str) -> None:
    """G05: the next process finds out, and in the end it is balance."""
    await street.start(step)
    bought = await street.buy()
    street.killed()
    street.query("UPDATE invoices SET next_check = 0")
    await street.start()
    for _ in range(200):
        if [claim.state for claim in street.claims()] == ["settled"] and _looked_at(street):
            break
        await asyncio.sleep(0.05)
    assert _looked_at(street)
    street.query("UPDATE claims SET deadline = 0, lease_until = 0")
    for _ in range(200):
        if [claim.state for claim in street.claims()] == ["credited"]:
            break
        await asyncio.sleep(0.05)
    assert street.query("SELECT sum(available), sum(held) FROM accounts") == [(FIXED, 0)]
    assert (await street.decided(bought.l402, "/other")).status == 200
    assert street.query("SELECT sum(available), sum(held) FROM accounts") == [(0, 0)]
    await street.settled_down()


def _looked_at(street: Street) -> bool:
    return street.query("SELECT state FROM invoices WHERE state <> 'settled'") == []


@pytest.mark.parametrize("step", ["node.create", "-store.add_invoice", "store.add_invoice"])
async def test_J01_killed_while_an_invoice_is_made_nobody_was_shown_it(street: Street, step: str) -> None:
    await street.start(step)
    with pytest.raises(httpx.TransportError):
        await street.buy()
    street.killed()
    await street.start()
    bought = await street.buy()
    assert (await street.decided(bought.payment)).status == 200
    await street.settled_down()
