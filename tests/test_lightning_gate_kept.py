"""Paid over Lightning, and something goes wrong on our side: whoever paid is served, or has the money as balance."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.lightning_till import Till, opened
from x402kit.devnet import LightningDevnet
from x402kit.errors import RailUnavailable


@pytest.fixture
async def till(lightning: LightningDevnet, tmp_path: Path) -> AsyncGenerator[Till]:
    async with opened(lightning, tmp_path / "payments.db") as made:
        yield made


def broken(monkeypatch: pytest.MonkeyPatch, till: Till, name: str, fault: Callable[[], BaseException]) -> list[str]:
    """The store's call fails from now on; undo by ``monkeypatch.undo``. Its calls are counted."""
    calls: list[str] = []

    async def fails(*arguments: Any, **named: Any) -> Any:
        calls.append(name)
        raise fault()

    monkeypatch.setattr(till.store, name, fails)
    return calls


@pytest.mark.parametrize(("name", "path"), [("note_invoice", "/fixed"), ("move", "/three"), ("get_invoice", "/fixed")])
async def test_J04_a_ledger_that_fails_on_the_way_leaves_the_payment_free_to_be_shown_again(
    lightning: LightningDevnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, path: str
) -> None:
    async with opened(lightning, tmp_path / "payments.db") as till:
        till.node.deaf = True
        bought = await till.buy(path)
        if name == "get_invoice":  # its second call: the payment is claimed by then
            looked = till.store.get_invoice

            async def second(payment_hash: str) -> Any:
                if await till.claim(bought) is not None:
                    raise RailUnavailable
                return await looked(payment_hash)

            monkeypatch.setattr(till.store, name, second)
        else:
            broken(monkeypatch, till, name, RailUnavailable)
        answer = await till.ask(path, bought.l402)
        assert (answer.status, till.runs) == (503, [])
        monkeypatch.undo()
        assert (await till.ask(path, bought.l402)).status == 200


async def test_C03_a_caller_cut_off_while_it_is_written_down_finds_the_payment_free(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    till.node.deaf = True
    bought = await till.buy("/fixed")
    reached = asyncio.Event()

    async def hangs(payment_hash: str, **columns: Any) -> None:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(till.store, "note_invoice", hangs)
    showing = asyncio.create_task(till.ask("/fixed", bought.l402))
    await reached.wait()
    showing.cancel()
    await asyncio.gather(showing, return_exceptions=True)
    monkeypatch.undo()
    assert (await till.show("/fixed", bought.l402)).status == 200


async def test_a_payment_that_the_watcher_writes_down_at_that_moment_is_no_conflict(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted, claimed = till.store.note_invoice, asyncio.Event()

    async def slow(payment_hash: str, **columns: Any) -> None:
        claimed.set()
        await asyncio.sleep(0.2)
        await noted(payment_hash, **columns)

    monkeypatch.setattr(till.store, "note_invoice", slow)
    bought = await till.buy("/fixed")
    await asyncio.wait_for(claimed.wait(), 5)  # the watcher has the claim
    assert (await till.ask("/fixed", bought.l402)).status == 200
    assert len(till.runs) == 1
