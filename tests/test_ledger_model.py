"""Stores against the model of support/ledger_model.py: made-up moves and repeats, and every invariant after each step.

``X402KIT_MODEL_STEPS`` says how many steps each store takes, 50 000 by default. A failure names its seed; the same seed
does the same again.
"""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import replace
from typing import Any

import pytest

from tests.support.ledger_model import Line, Model, Step, same
from tests.support.stores import PLACES
from x402kit.ledger.port import Store
from x402kit.model import Account

STEPS = int(os.environ.get("X402KIT_MODEL_STEPS", "50000"))
WORLD = 2_500
"""Steps before a store begins anew: the checks after each step read the whole log."""
PARTS = 10
WALLETS = 64


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", sorted(PLACES))
async def test_E03_E12_a_store_does_what_the_model_does(kind: str, part: int) -> None:
    taken = world = 0
    while taken < STEPS / PARTS:
        world += 1
        taken += await _play(kind, f"{part}.{world}")


async def _play(kind: str, seed: str) -> int:
    rng = random.Random(seed)
    tokens = ("0x" + "ab" * 20, "0x" + "cd" * 20)
    accounts = [Account.of("eip155:8453", tokens[n % 2], f"0x{n // 2:040x}") for n in range(WALLETS)]
    model = Model(rng, accounts)
    before: dict[Account, Step] = {}
    taken = 0
    with PLACES[kind]() as place:
        store = place.open()
        await store.start()
        while taken < WORLD:
            if rng.random() < 0.1:
                steps = [model.expire()]
                before.clear()  # what is refused for want of money may be granted now
            else:
                steps = [_next(model, before, account) for account in rng.sample(accounts, rng.randint(1, WALLETS))]
            found = await asyncio.gather(*[step.call(store) for step in steps], return_exceptions=True)
            for step, answer in zip(steps, found, strict=True):
                assert same(answer, step.expected), (seed, taken, step.name, answer, step.expected)
            await check(store, model, seed)
            taken += len(steps)
        await _check_all(store, model, seed)
        await store.close()
    return taken


def _next(model: Model, before: dict[Account, Step], account: Account) -> Step:
    """Something new, or what was asked last, again: its answer was lost."""
    last = before.get(account)
    if last is not None and model.rng.random() < 0.25:
        return replace(last, expected=last.again)
    before[account] = step = model.next(account)
    return step


async def check(store: Store, model: Model, seed: str) -> None:
    """I1, I2, I5, I6 and the sums, as far as they can be seen from outside."""
    faults, totals = await asyncio.gather(store.verify(), store.totals())
    assert faults == [], seed
    for asset, sums in totals.items():
        lines = [line for account, log in model.log.items() if account.asset == asset for line in log]
        five = {name: sums[name] for name in ("external", "available", "held", "revenue", "suspense")}
        assert sum(five.values()) == 0, "I1"
        for name, value in five.items():
            assert value == sum(getattr(line.amounts, name) for line in lines), (seed, name)
        assert sums["holds"] == sums["held"], "I6"
        written_off = sum(line.amounts.suspense for line in lines if line.type == "reverse")
        assert sums["payouts"] == sums["suspense"] - written_off


async def _check_all(store: Store, model: Model, seed: str) -> None:
    """Every row of the world that ends, and that the balances can be made anew."""
    await _check_rows(store, model, seed)
    assert await store.rebuild() >= sum(1 for account in model.log if model.log[account])
    assert await store.verify() == []
    await _check_rows(store, model, seed)


async def _check_rows(store: Store, model: Model, seed: str) -> None:
    for account in model.accounts:
        balance = await store.balance(account)
        assert balance == (model.available[account], model.held[account]), seed
        assert min(balance) >= 0, "I2"
        lines = [Line.of(entry) for entry in await store.entries(account, limit=100_000)]
        assert lines[::-1] == model.log[account], seed
    for hold in model.holds.values():
        found: Any = await store.hold(hold.id)
        assert same(found, hold), (seed, found, hold)
        assert found.captured <= found.amount or found.lost == 0 or model.available[found.account] >= 0, "I5"
    for table, get in ((model.claims, store.get), (model.payouts, store.get_payout)):
        for claim in table.values():
            row = await get(claim.payment_id)
            assert row is not None
            assert (row.state, row.captured) == (claim.state, claim.captured), seed
