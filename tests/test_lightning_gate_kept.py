"""Paid over Lightning, and something goes wrong on our side: whoever paid is served, or has the money as balance."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.lightning_till import FIXED, Till, chat, opened
from tests.support.stores import Place
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


async def test_all_of_it_on_every_kind_of_store(
    lightning: LightningDevnet, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(lightning, place.open()) as till:
        fixed, chatted = await till.buy("/fixed"), await till.buy("/chat", chat(300))
        passed = await till.buy("/three")
        month, unshown = await till.buy("/month"), await till.buy("/other")
        answers = await asyncio.gather(*[till.show("/fixed", fixed.l402) for _ in range(10)])
        assert {answer.status for answer in answers} == {200}
        assert (await till.show("/chat", chatted.payment, chat(300))).status == 200
        assert (await till.ask("/chat", chatted.l402, chat(200, 200))).status == 200
        assert await till.left(chatted) == FIXED - 3000 - 2000
        for _ in range(3):
            assert (await till.show("/three", passed.l402)).status == 200
        assert (await till.ask("/three", passed.l402)).status == 402
        assert (await till.show("/month", month.l402)).status == 200
        await till.known(unshown, "settled")
        for days in (1.1, 3.0, 3.0):
            later = time.time() + days * 86_400
            with monkeypatch.context() as patch:
                patch.setattr(time, "time", lambda later=later: later)
                await till.tidy()
        assert await till.claim(fixed) is None
        assert (await till.ask("/fixed", fixed.l402)).status == 402  # forgotten, and served no second time
        assert (await till.ask("/month", month.l402)).status == 200
        assert (await till.ask("/other", unshown.payment)).status == 200
        assert await till.left(unshown) == 0


async def test_C02_two_paywalls_on_one_node_and_one_ledger(lightning: LightningDevnet, tmp_path: Path) -> None:
    ledger = tmp_path / "payments.db"
    async with opened(lightning, ledger) as one, opened(lightning, ledger) as other:
        for number in range(4):
            bought = await one.buy(f"/fixed?{number}")
            other.bought[bought.offer.hash] = bought
            answers = await asyncio.gather(
                *[till.show(f"/fixed?{number}", bought.l402) for till in (one, other) for _ in range(5)]
            )
            assert {answer.status for answer in answers} == {200}
        assert len(one.runs) + len(other.runs) == 4


@pytest.mark.parametrize("way", ["l402", "payment"])
async def test_I7_what_was_paid_for_is_never_asked_for_again_where_lightning_is_taken_no_more(
    lightning: LightningDevnet, tmp_path: Path, way: str
) -> None:
    """503 says that it may be shown again: it is as good as before once the seller takes Lightning again."""
    ledger = tmp_path / "payments.db"
    async with opened(lightning, ledger) as till:
        bought = await till.buy("/fixed")
    shown = bought.l402 if way == "l402" else bought.payment
    async with opened(lightning, ledger, lightning=None) as later:
        answer = await later.ask("/fixed", shown)  # and the till looks: no challenge with it (I7)
        assert (answer.status, answer.reason) == (503, "not_over_lightning_now")
        assert int(answer.header("retry-after")) > 0
        assert (await later.ask("/fixed")).status == 402  # who has not paid is asked to, on the rail that is left
        assert later.runs == []
    async with opened(lightning, ledger) as till:
        assert (await till.show("/fixed", shown)).status == 200


async def test_where_serving_comes_first_what_was_paid_over_lightning_is_paid(till: Till) -> None:
    bought = await till.buy("/after")
    till.failing = 1
    assert (await till.show("/after", bought.l402)).status == 500
    assert (await till.show("/after", bought.l402)).status == 200
    assert (await till.ask("/after", bought.l402)).header("payment-replayed") == "true"
    assert [run[1] for run in till.runs] == ["payment", "payment"]


async def test_a_bitcoin_without_a_price_is_no_reason_to_lose_what_was_paid(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    bought, used = await till.buy("/fixed"), await till.buy("/chat", chat(0))
    assert (await till.show("/chat", used.l402, chat(0))).status == 200

    def unknown() -> Any:
        raise RailUnavailable(detail="no bitcoin price")

    monkeypatch.setattr(till.paywall.lightning, "rate", unknown)
    assert (await till.show("/fixed", bought.l402)).status == 200
    assert (await till.ask("/chat", used.l402, chat(1, 10))).status == 503  # what it would cost nobody can say
    answer = await till.ask("/fixed?new")
    assert (answer.status, len(answer.all("www-authenticate"))) == (402, 1)
    monkeypatch.undo()
    assert (await till.ask("/chat", used.l402, chat(1, 10))).status == 200


async def test_H08_a_handler_that_always_fails_is_not_run_without_end_and_the_money_is_not_lost(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    bought = await till.buy("/fixed")
    till.failing = 100
    answers = [await till.show("/fixed", bought.l402) for _ in range(12)]
    statuses = [answer.status for answer in answers]
    assert statuses == sorted(statuses, reverse=True)  # 500 for a while, then 403: never a 402 that asks for more
    assert set(statuses) == {500, 403}
    later = time.time() + 86_401
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: later)
        await till.tidy()
    till.failing = 0
    assert await till.left(bought) == FIXED
    assert (await till.ask("/fixed", bought.l402)).status == 200
