"""What a store promises beside group E: proofs, claims in the books, jobs, pages, and what is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.stores import Place
from x402kit.errors import HoldEnded, InsufficientBalance, ProofUsed, RailUnavailable
from x402kit.ledger.port import Store
from x402kit.model import Account, Balance, Claim, Hold, Spend

FAR = 4_000_000_000
NEVER = 5_000_000_000
PAYER = Account.of("eip155:8453", "0xUSDC", "0xPayer")


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    made = place.open(lease_seconds=0.3)
    await made.start()
    await made.deposit(PAYER, 100, "k")
    yield made
    assert await made.verify() == []
    await made.close()


def a_hold(name: str = "h", amount: int = 60, holder: str = "me") -> Hold:
    return Hold(name, *PAYER, amount, holder, 1, 1, resource="POST /call", request_id=f"request-{name}")


async def settled(store: Store, name: str = "p", amount: int = 100) -> None:
    who = ("eip155:8453", "0xUSDC", "0xShop", "0xPayer")
    claim = Claim(name, "claimed", b"f", b"c", "GET /", *who, amount, FAR, 1, 2, owner="o", request_id="r")
    assert (await store.claim(claim)).owner == "o"
    assert await store.move(name, "intend", "o", reference="0x1")
    assert await store.move(name, "confirm", "o")


async def test_F01_a_proof_is_spent_once_however_many_race_for_it(store: Store) -> None:
    spend = Spend("proof", FAR)
    holds = [store.reserve(a_hold(f"h{number}", 5), spend) for number in range(8)]
    found = await asyncio.gather(*holds, return_exceptions=True)
    assert sum(isinstance(each, Hold) for each in found) == 1
    assert sum(isinstance(each, ProofUsed) for each in found) == 7
    assert await store.balance(PAYER) == Balance(95, 5)
    assert await store.proof_spent("proof")


async def test_F01_a_proof_is_not_spent_by_what_is_refused(store: Store) -> None:
    with pytest.raises(InsufficientBalance) as refused:
        await store.reserve(a_hold("h", 101), Spend("proof", FAR))
    assert (refused.value.available, refused.value.needed) == (100, 101)
    assert not await store.proof_spent("proof")
    hold = await store.reserve(a_hold("h", 100), Spend("proof", FAR))
    assert (await store.reserve(a_hold("h", 100), Spend("proof", FAR))).holder == hold.holder  # the same again (E03)
    assert (await store.reserve(a_hold("h", 100, "you"))).holder == "me"
    with pytest.raises(ProofUsed):  # that it is spent is said before that there is too little
        await store.reserve(a_hold("h2", 100), Spend("proof", FAR))


async def test_F01_a_payout_spends_its_proof_too(store: Store) -> None:
    who = ("eip155:8453", "0xUSDC", "", "0xPayer")
    row = Claim("out", "claimed", b"", b"", "", *who, 40, FAR, 1, 2, owner="o")
    assert (await store.payout(row, Spend("proof", FAR))).owner == "o"
    assert (await store.payout(row, Spend("proof", FAR))).owner == "o"
    with pytest.raises(ProofUsed):
        await store.payout(row.changed(payment_id="again"), Spend("proof", FAR))
    with pytest.raises(InsufficientBalance):
        await store.payout(row.changed(payment_id="again", amount=61), Spend("new", FAR))
    assert not await store.proof_spent("new")
    assert await store.balance(PAYER) == Balance(60)


@pytest.mark.parametrize("move", ["confirm", "drop", "lose"])
async def test_I12_a_payout_that_is_over_is_kept_alive_by_nobody(store: Store, move: str) -> None:
    """Else each one that was ever made would be, by a write every few seconds."""
    who = ("eip155:8453", "0xUSDC", "", "0xPayer")
    await store.payout(Claim("out", "claimed", b"", b"", "", *who, 40, FAR, 1, 2, owner="o"))
    if move == "lose":
        assert await store.move_payout("out", "intend", "o", reference="0x1")
    assert await store.move_payout("out", move, "o")
    await asyncio.sleep(0.4)  # more than a lease
    found = await store.get_payout("out")
    assert found is not None
    assert found.lease_until == 0


@pytest.mark.parametrize(("captured", "rest"), [(None, 0), (30, 70), (0, 100), (900, 0)])
async def test_a_served_payment_is_earned_and_its_rest_is_balance(
    store: Store, captured: int | None, rest: int
) -> None:
    await settled(store)
    columns = {} if captured is None else {"captured": captured}
    assert await store.move("p", "serve", "o", **columns)
    assert not await store.move("p", "serve", "o", **columns)
    entry, claim = await store.entry("claim:p"), await store.get("p")
    assert entry is not None
    assert claim is not None
    assert (entry.type, entry.external, entry.available, entry.revenue) == ("payment", -100, rest, 100 - rest)
    assert (entry.resource, entry.request_id, entry.reference) == ("GET /", "r", "0x1")
    assert claim.captured == 100 - rest
    assert await store.balance(PAYER) == Balance(100 + rest)


async def test_what_was_never_served_becomes_balance(store: Store) -> None:
    await settled(store)
    assert await store.move("p", "credit", "o")
    entry = await store.entry("claim:p")
    assert entry is not None
    assert (entry.type, entry.available) == ("deposit", 100)


async def test_what_a_facilitator_settled_for_others_is_not_in_our_books(store: Store) -> None:
    await settled(store)
    assert await store.move("p", "tell", "o")
    assert await store.entry("claim:p") is None
    await store.write_off("p")
    assert await store.balance(PAYER) == Balance(100)


@pytest.mark.parametrize(("spent", "taken"), [(0, 80), (50, 50), (100, 0)])
async def test_I08_what_left_the_chain_is_taken_back_as_far_as_there_is_balance(
    store: Store, spent: int, taken: int
) -> None:
    await settled(store, amount=80)
    assert await store.move("p", "serve", "o", captured=80)
    if spent:
        await store.reserve(a_hold("h", spent))
        await store.capture("h", spent)
    for _ in range(3):
        await store.write_off("p")
    entry, claim = await store.entry("reverse:p"), await store.get("p")
    assert entry is not None
    assert claim is not None
    assert (entry.external, entry.available, entry.suspense) == (80, -taken, taken - 80)
    assert (claim.final, claim.reason) == (1, "reversed")


async def test_a_job_goes_on_as_a_hold_of_its_whole_payment(store: Store) -> None:
    await settled(store)
    job = a_hold("job", 100, holder="")._replace(deadline=50)
    assert await store.serve_held("p", "o", job, served_at=3, status=202)
    assert not await store.serve_held("p", "o", job, served_at=3, status=202)
    assert await store.balance(PAYER) == Balance(100, 100)
    claim = await store.get("p")
    assert claim is not None
    assert (claim.state, claim.captured, claim.status, claim.lease_until) == ("served", 0, 202, 0)
    assert await store.expire(49) == []
    assert (await store.capture("job", 30)).revenue == 30
    assert await store.balance(PAYER) == Balance(170)


async def test_a_job_whose_hold_exists_is_not_served(store: Store) -> None:
    await store.reserve(a_hold("job", 100))
    await settled(store)
    with pytest.raises((ValueError, RailUnavailable)):
        await store.serve_held("p", "o", a_hold("job", 100), served_at=3)
    claim = await store.get("p")
    assert claim is not None
    assert claim.state == "settled"
    assert await store.entry("claim:p") is None


async def test_an_answer_is_kept_with_its_capture(store: Store) -> None:
    hold = a_hold("key")._replace(fingerprint=b"f" * 32)
    await store.reserve(hold)
    kept: dict[str, Any] = {
        "status": 201,
        "headers": b"h",
        "body": b"b" * 5000,
        "body_digest": b"d" * 32,
        "kept_until": 500,
    }
    await store.capture("key", 5, holder="me", **kept)
    found = await store.hold("key")
    assert found is not None
    assert {name: getattr(found, name) for name in kept} == kept
    assert (found.fingerprint, found.state, found.request_id) == (b"f" * 32, "captured", "request-key")
    await store.prune(501)
    found = await store.hold("key")
    assert found is not None
    assert (found.body, found.status) == (None, 201)


async def test_K04_ended_holds_and_old_proofs_are_forgotten_and_the_log_is_not(store: Store) -> None:
    await store.reserve(a_hold("ended", 5), Spend("old", FAR - 10))
    await store.capture("ended", 3)
    await store.reserve(a_hold("open", 5), Spend("new", NEVER))
    before = await store.entries(PAYER)
    assert await store.prune(1) == 0
    assert await store.prune(FAR) == 2
    assert await store.hold("ended") is None
    assert await store.hold("open") is not None
    assert [await store.proof_spent(name) for name in ("old", "new")] == [False, True]
    with pytest.raises(HoldEnded, match="already_captured"):
        await store.void("ended")
    again = await store.reserve(a_hold("ended", 5))
    assert (again.state, again.captured, again.holder) == ("captured", 3, "")
    assert await store.entries(PAYER) == before


async def test_entries_come_in_pages_newest_first(store: Store) -> None:
    for number in range(6):
        await store.deposit(PAYER, 1, f"k{number}")
    everything = await store.entries(PAYER)
    assert [entry.balance for entry in everything] == [106, 105, 104, 103, 102, 101, 100]
    pages = [everything[:3]]
    while pages[-1]:
        pages.append(await store.entries(PAYER, before=pages[-1][-1].id, limit=3))
    assert [entry for page in pages for entry in page] == everything
    assert await store.entries(Account("nobody", PAYER.asset)) == []
