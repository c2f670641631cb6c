"""Group E: money that is counted twice, or not at all. On every kind of store."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from fractions import Fraction
from math import ceil
from typing import Any

import pytest

from tests.support.stores import Place
from x402kit.errors import HoldEnded, InsufficientBalance, PaymentUsed, RailUnavailable, ServerError
from x402kit.ledger.port import Store
from x402kit.model import Account, Balance, Claim, Entry, Hold
from x402kit.money import MAX_AMOUNT

FAR = 4_000_000_000
PAYER = Account.of("eip155:8453", "0xUSDC", "0xPayer")
OTHER = Account.of("eip155:8453", "0xUSDC", "0xOther")
TOO_MUCH = (RailUnavailable, ValueError)


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    made = place.open(lease_seconds=0.3)
    await made.start()
    yield made
    assert await made.verify() == []
    await made.close()


def a_hold(name: str = "h", amount: int = 60, account: Account = PAYER, deadline: int = 1, holder: str = "me") -> Hold:
    return Hold(name, *account, amount, holder, 1, deadline)


def a_claim(name: str = "p", amount: int = 100, wallet: str = "0xPayer", owner: str = "o") -> Claim:
    who = ("eip155:8453", "0xUSDC", "0xShop", wallet)
    return Claim(name, "claimed", b"f", b"c", "GET /", *who, amount, FAR, 1, 2, owner=owner)


async def settled(store: Store, claim: Claim) -> None:
    assert (await store.claim(claim)).owner == claim.owner
    assert await store.move(claim.payment_id, "intend", claim.owner, reference="0x1")
    assert await store.move(claim.payment_id, "confirm", claim.owner)


async def outcomes(*calls: Awaitable[Any]) -> Counter[str]:
    """What many calls at once came to: the type of each answer, or an error's reason."""
    found = await asyncio.gather(*calls, return_exceptions=True)
    return Counter(getattr(each, "reason", type(each).__name__) for each in found)


async def test_E01_a_deposit_counts_once_for_its_key(store: Store) -> None:
    first = await store.deposit(PAYER, 100, "0xabc:7", reference="0xabc")
    again = await asyncio.gather(*[store.deposit(PAYER, 100, "0xabc:7") for _ in range(8)])
    assert again == [first] * 8
    for account, amount in ((OTHER, 100), (PAYER, 101)):
        with pytest.raises(PaymentUsed):
            await store.deposit(account, amount, "0xabc:7")
    assert await store.balance(PAYER) == Balance(100)
    assert await store.balance(OTHER) == Balance(0)
    assert (await store.entries(PAYER))[0].reference == "0xabc"


async def test_E01_a_deposit_asked_again_is_the_same_however_full_its_account_is(store: Store) -> None:
    first = await store.deposit(PAYER, MAX_AMOUNT, "all there is")
    assert await store.deposit(PAYER, MAX_AMOUNT, "all there is") == first
    await store.deposit(OTHER, 1, "a little")
    with pytest.raises(PaymentUsed):
        await store.deposit(PAYER, 1, "a little")
    assert await store.balance(PAYER) == Balance(MAX_AMOUNT)


async def test_E01_a_payment_is_credited_once_and_to_its_payer(store: Store) -> None:
    await settled(store, a_claim(wallet="0xPAYER"))
    moves = [store.move("p", move) for move in ("credit", "serve", "credit", "serve") for _ in range(4)]
    assert Counter(await asyncio.gather(*moves)) == {True: 1, False: 15}
    assert len(await store.entries(PAYER)) == 1
    entry = await store.entry("claim:p")
    assert entry is not None
    assert (entry.external, entry.reference) == (-100, "0x1")


async def test_E02_a_key_is_written_with_its_balance_or_not_at_all(store: Store) -> None:
    await store.deposit(PAYER, MAX_AMOUNT - 1, "all there is")
    with pytest.raises(TOO_MUCH):
        await store.deposit(PAYER, 2, "one too many")
    assert await store.entry("deposit:one too many") is None
    assert await store.balance(PAYER) == Balance(MAX_AMOUNT - 1)
    await store.deposit(PAYER, 1, "one too many")  # the key is still free


async def test_E02_a_claim_is_not_served_when_its_rest_cannot_be_credited(store: Store) -> None:
    await store.deposit(PAYER, MAX_AMOUNT, "all there is")
    await settled(store, a_claim())
    beside = store.deposit(OTHER, 5, "in the same commit")
    calls: list[Awaitable[Any]] = [store.move("p", "serve", "o", captured=40), beside]
    refused, entry = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(refused, TOO_MUCH)
    assert isinstance(entry, Entry)
    claim = await store.get("p")
    assert claim is not None
    assert (claim.state, claim.captured) == ("settled", 0)
    assert await store.move("p", "serve", "o")  # nothing is left over: it fits


async def test_E03_what_was_committed_and_not_heard_is_a_repeat(store: Store) -> None:
    await store.deposit(PAYER, 1000, "k")
    held = a_hold()
    lost = asyncio.ensure_future(store.capture("h", 40, holder="me"))
    lost.cancel()
    await store.reserve(held)
    first = asyncio.ensure_future(store.capture("h", 40, holder="me"))
    await asyncio.sleep(0)
    first.cancel()
    entry = await store.capture("h", 40, holder="me")
    assert entry == await store.capture("h", 40) == await store.entry("end:h")
    assert (await store.reserve(held)).state == "captured"
    assert await store.balance(PAYER) == Balance(960)
    assert len(await store.entries(PAYER)) == 3


async def test_E03_a_reserve_whose_caller_is_gone_is_given_back(store: Store) -> None:
    await store.deposit(PAYER, 100, "k")
    gone = asyncio.ensure_future(store.reserve(a_hold()))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    for _ in range(100):
        await store.expire(FAR)
        if (await store.balance(PAYER)).held == 0:
            break
        await asyncio.sleep(0.02)
    assert await store.balance(PAYER) == Balance(100)


async def test_E04_a_cost_above_the_hold_is_the_sellers_loss(store: Store) -> None:
    await store.deposit(PAYER, 100, "k")
    await store.reserve(a_hold())
    entry = await store.capture("h", 75)
    assert (entry.revenue, entry.held, entry.balance) == (60, -60, 40)
    found = await store.hold("h")
    assert found is not None
    assert (found.captured, found.lost) == (60, 15)


@pytest.mark.parametrize(("cost", "charged"), [(75, 75), (100, 100), (130, 100), (59, 59)])
async def test_E04_or_is_charged_as_far_as_the_balance_goes(store: Store, cost: int, charged: int) -> None:
    await store.deposit(PAYER, 100, "k")
    await store.reserve(a_hold())
    entry = await store.capture("h", cost, overage="charge")
    assert (entry.revenue, entry.balance) == (charged, 100 - charged)
    found = await store.hold("h")
    assert found is not None
    assert (found.captured, found.lost) == (charged, cost - charged)


async def test_E04_many_that_are_charged_at_once_share_what_there_is(store: Store) -> None:
    await store.deposit(PAYER, 100, "k")
    for number in range(8):
        await store.reserve(a_hold(f"h{number}", 10))
    entries = await asyncio.gather(*[store.capture(f"h{number}", 14, overage="charge") for number in range(8)])
    assert sum(entry.revenue for entry in entries) == 100
    assert await store.balance(PAYER) == Balance(0)


async def test_E05_a_hold_ends_once(store: Store) -> None:
    await store.deposit(PAYER, 1000, "k")
    for name in ("captured", "voided", "expired"):
        await store.reserve(a_hold(name))
    await store.capture("captured", 50)
    await store.void("voided")
    assert await store.defer_hold("expired", "me", 10)
    assert [hold.id for hold in await store.expire(10)] == ["expired"]
    before = await store.entries(PAYER)
    for name in ("captured", "voided", "expired"):
        ends: list[Awaitable[Entry]] = [store.capture(name, 51), store.capture(name, 0)]
        if name != "voided":
            ends.append(store.void(name))
        assert await outcomes(*ends) == {f"already_{name}": len(ends)}
    assert await outcomes(store.capture("none", 1), store.void("none")) == {"no_such_hold": 2}
    assert await store.entries(PAYER) == before


async def test_E05_only_the_holder_ends_it(store: Store) -> None:
    await store.deposit(PAYER, 100, "k")
    await store.reserve(a_hold())
    assert await outcomes(store.capture("h", 1, holder="you"), store.void("h", holder="you")) == {"no_such_hold": 2}
    assert not await store.defer_hold("h", "you", 5)
    assert (await store.void("h", holder="me")).available == 60


async def test_E06_a_hold_lives_as_long_as_its_holder_says_so(store: Store) -> None:
    await store.deposit(PAYER, 100, "k")
    await store.reserve(a_hold(deadline=1))
    await asyncio.sleep(0.7)  # more than two leases: only the heartbeat can have kept it
    assert await store.expire(FAR) == []
    assert (await store.capture("h", 5, holder="me")).revenue == 5


async def test_E06_a_hold_whose_holder_is_gone_expires_and_its_capture_fails_closed(place: Place, store: Store) -> None:
    await store.deposit(PAYER, 100, "k")
    dead = place.open(lease_seconds=0.3)
    await dead.start()
    await dead.reserve(a_hold(deadline=50))
    await dead.close()
    assert await store.expire(49) == []  # a job's deadline holds without a lease
    assert [(hold.id, hold.state) for hold in await store.expire(50)] == [("h", "expired")]
    with pytest.raises(HoldEnded, match="already_expired"):
        await store.capture("h", 60, holder="me")
    assert await store.balance(PAYER) == Balance(100)


async def test_E07_of_capture_void_and_expiry_at_the_deadline_one_wins(store: Store) -> None:
    names = [f"h{number}" for number in range(60)]
    await store.deposit(PAYER, 600, "k")
    await asyncio.gather(*[store.reserve(a_hold(name, 10)) for name in names])
    await asyncio.gather(*[store.defer_hold(name, "me", 5) for name in names])
    calls: list[Awaitable[Any]] = [store.expire(5, limit=20), store.expire(5, limit=20)]
    for name in names:
        calls += [store.capture(name, 3), store.void(name)]
    random.Random(7).shuffle(calls)
    await asyncio.gather(*calls, return_exceptions=True)
    ends = [await store.entry(f"end:{name}") for name in names]
    states = Counter(entry.type for entry in ends if entry)
    assert sum(states.values()) == 60
    assert await store.balance(PAYER) == Balance(600 - 3 * states["capture"])


async def test_E08_fractions_are_rounded_up_and_nothing_drifts(store: Store) -> None:
    rng = random.Random(8)
    await store.deposit(PAYER, 10**12, "k")
    price = Fraction(37, 1000)  # of an atomic unit for a token
    tokens = [rng.randint(0, 100_000) for _ in range(4000)]
    for start in range(0, len(tokens), 500):
        batch = list(enumerate(tokens[start : start + 500], start))
        await asyncio.gather(*[store.reserve(a_hold(f"h{number}", 3700)) for number, _ in batch])
        await asyncio.gather(*[store.capture(f"h{number}", ceil(count * price)) for number, count in batch])
    exact = sum(count * price for count in tokens)
    charged = 10**12 - (await store.balance(PAYER)).available
    assert charged == sum(ceil(count * price) for count in tokens)
    assert exact <= charged < exact + len(tokens)


@pytest.mark.parametrize("amount", [0, -1, MAX_AMOUNT + 1, True, 1.0, "5", None])
async def test_E09_what_is_no_amount_is_refused(store: Store, amount: Any) -> None:
    for call in (
        store.deposit(PAYER, amount, "k"),
        store.reserve(a_hold(amount=amount)),
        store.payout(a_claim(amount=amount)),
    ):
        with pytest.raises(ValueError, match="amount"):
            await call
    if amount != 0 or type(amount) is not int:
        with pytest.raises(ValueError, match="amount"):
            await store.capture("h", amount)
    assert await store.totals() == {}


async def test_E09_the_largest_amounts_are_exact(store: Store) -> None:
    for account in (PAYER, OTHER):
        await store.deposit(account, MAX_AMOUNT, account.owner)
        await store.reserve(a_hold(account.owner, MAX_AMOUNT, account))
    assert (await store.totals())[PAYER.asset]["held"] == 2 * MAX_AMOUNT
    assert (await store.capture(PAYER.owner, MAX_AMOUNT)).revenue == MAX_AMOUNT
    assert (await store.void(OTHER.owner)).balance == MAX_AMOUNT
    assert (await store.totals())[PAYER.asset]["external"] == -2 * MAX_AMOUNT


async def test_E10_a_payout_is_taken_once_and_paid_once(store: Store) -> None:
    await store.deposit(PAYER, 100, "k")
    rows = await asyncio.gather(*[store.payout(a_claim("w", 100, owner=f"o{n}")) for n in range(8)])
    assert len({row.owner for row in rows}) == 1
    owner = rows[0].owner
    assert await store.balance(PAYER) == Balance(0)
    assert await store.move_payout("w", "intend", owner, reference="0xout")
    paid = await asyncio.gather(*[store.move_payout("w", move) for move in ("confirm", "fail", "confirm", "drop")])
    assert sorted(paid) == [False, False, False, True]
    row, end = await store.get_payout("w"), await store.entry("payout-end:w")
    assert row is not None
    assert end is not None
    assert {"settled": "refund", "failed": "returned"}[row.state] == end.type
    assert (await store.totals())[PAYER.asset]["suspense"] == 0


async def test_E10_a_payout_whose_process_died_is_finished_by_another(place: Place, store: Store) -> None:
    await store.deposit(PAYER, 300, "k")
    dead = place.open(lease_seconds=0.3)
    await dead.start()
    for name in ("before", "sent"):
        await dead.payout(a_claim(name, 100, owner="dead"))
    assert await dead.move_payout("sent", "intend", "dead", reference="0xout")
    assert await store.due_payouts(10) == []  # it lives
    await dead.close()
    assert {row.payment_id for row in await store.due_payouts(10)} == {"before", "sent"}
    for name, state, move in (("before", "claimed", "drop"), ("sent", "sent", "confirm")):
        assert await store.take_payout(name, state, "me") is not None
        assert await store.move_payout(name, move, "me", next_check=20)
    assert [row.payment_id for row in await store.due_payouts(30)] == ["sent"]  # until it is final
    await store.note_payout("sent", final=1)
    assert await store.due_payouts(30) == []
    assert await store.balance(PAYER) == Balance(200)
    with pytest.raises(ValueError, match="serve"):
        await store.move_payout("sent", "serve")


async def test_E11_a_payer_that_nobody_knows_has_nothing_to_spend(store: Store) -> None:
    assert await store.balance(PAYER) == Balance(0)
    calls = [store.reserve(a_hold(f"h{number}", 1)) for number in range(8)]
    assert await outcomes(*calls) == {"insufficient_balance": 8}
    assert await store.entries(PAYER) == []
    await asyncio.gather(*[store.deposit(PAYER, 1, f"k{number}") for number in range(8)])
    assert await store.balance(PAYER) == Balance(8)


async def test_C10_two_calls_race_for_one_balance(store: Store) -> None:
    await store.deposit(PAYER, 10, "k")
    found = await asyncio.gather(*[store.reserve(a_hold(n, 8)) for n in ("a", "b")], return_exceptions=True)
    refused = [each for each in found if isinstance(each, ServerError)]
    assert [type(each) for each in refused] == [InsufficientBalance]
    assert vars(refused[0])["available"] == 2
    assert await store.balance(PAYER) == Balance(2, 8)


async def test_E12_balances_are_made_anew_from_the_log_to_the_byte(place: Place, store: Store) -> None:
    for number in range(20):
        account = Account.of("eip155:8453", "0xUSDC", f"0x{number % 7}")
        await store.deposit(account, 100 + number, f"k{number}")
        await store.reserve(a_hold(f"h{number}", 50, account))
        if number % 3:
            await store.capture(f"h{number}", number)
    rows = "SELECT owner, asset, available, held FROM accounts ORDER BY owner, asset"
    before = place.query(rows)
    place.query("UPDATE accounts SET available = 0, held = 7")
    faults = await store.verify()
    assert len(faults) >= 7
    assert {fault.asset for fault in faults} == {PAYER.asset}
    assert await store.rebuild() == 7
    assert repr(place.query(rows)) == repr(before)


async def test_E12_what_was_taken_from_the_log_is_seen(place: Place, store: Store) -> None:
    await store.deposit(PAYER, 100, "k")
    await store.reserve(a_hold())
    for change in ("UPDATE entries SET available = 5", "DELETE FROM entries"):
        with pytest.raises(Exception, match=r"only ever added|permission denied"):
            place.query(change)
    place.query("UPDATE holds SET amount = 61")
    assert {fault.found - fault.expected for fault in await store.verify()} <= {1, -1}
    assert await store.verify() != []
    place.query("UPDATE holds SET amount = 60")
