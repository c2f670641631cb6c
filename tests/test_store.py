"""Claims in every kind of store: guarded moves, leases, group commit, and what is refused (ledger/)."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncIterator
from multiprocessing.queues import SimpleQueue

import pytest

from tests.support.stores import Place, open_store
from x402kit.errors import ConfigError
from x402kit.ledger.port import Store
from x402kit.ledger.rules import MOVES, STATES, may
from x402kit.model import Account, Claim, Hold

FAR = 2_000_000_000
ALICE = Account.of("eip155:8453", "0xAA", "0xA11CE")


def new_claim(payment_id: str = "p", owner: str = "a", payer: str = "0xpayer") -> Claim:
    return Claim(
        payment_id,
        "claimed",
        b"f" * 32,
        b"c" * 32,
        "r",
        "eip155:8453",
        "0xa",
        "0xb",
        payer,
        10_000,
        FAR,
        1,
        2,
        owner=owner,
    )


def hold(hold_id: str, amount: int = 100, *, account: Account = ALICE, holder: str = "h") -> Hold:
    return Hold(hold_id, account.owner, account.asset, amount, holder, 1, 2)


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    made = place.open(lease_seconds=0.3)
    await made.start()
    yield made
    await made.close()


async def settle(store: Store, claim: Claim) -> None:
    assert (await store.claim(claim)).owner == claim.owner
    assert await store.move(claim.payment_id, "intend", claim.owner, reference="0x1", intent=b"raw")
    assert await store.move(claim.payment_id, "confirm", claim.owner, block=7)


async def test_C01_of_many_claims_for_one_payment_one_wins(store: Store) -> None:
    rows = await asyncio.gather(*[store.claim(new_claim(owner=f"o{i}")) for i in range(50)])
    assert len({row.owner for row in rows}) == 1


async def test_every_move_starts_only_where_the_rules_say(store: Store) -> None:
    for move, (_, end) in MOVES.items():
        for number, state in enumerate(STATES):
            claim = new_claim(f"{move}-{number}", payer=f"{move}{number}")
            await store.claim(claim)
            await store.note(claim.payment_id, state=state)
            assert await store.move(claim.payment_id, move, "a") is may(move, state)
            found = await store.get(claim.payment_id)
            assert found is not None
            assert found.state == (end if may(move, state) else state)


async def test_a_move_by_who_lost_the_claim_is_refused(store: Store) -> None:
    await store.claim(new_claim())
    assert not await store.move("p", "intend", "somebody else")


async def test_moves_that_wait_together_are_each_what_they_would_be_alone(store: Store) -> None:
    """More than one statement takes; two for one claim, and one by who does not have it."""
    names = [f"p{number}" for number in range(21)]
    await asyncio.gather(*[store.claim(new_claim(name, owner=name)) for name in names])
    shown = [*zip(names, names, strict=True), ("p3", "p3"), ("p9", "somebody else")]
    moved = await asyncio.gather(*[store.move(name, "intend", owner) for name, owner in shown])
    assert sorted(moved) == [False, False] + [True] * 21
    assert all(await asyncio.gather(*[store.move(name, "confirm", name) for name in names]))
    served = [store.move(name, "serve", name, captured=100 * number) for number, name in enumerate(names)]
    assert all(await asyncio.gather(*served))
    account = Account.of("eip155:8453", "0xa", "0xpayer")
    assert (await store.balance(account)).available == sum(10_000 - 100 * number for number in range(21))
    assert len(await store.entries(account)) == 21
    assert await store.verify() == []


async def test_a_failed_claim_can_be_claimed_again_and_no_other(store: Store) -> None:
    await store.claim(new_claim())
    await store.move("p", "fail", "a", reason="insufficient_funds")
    again = await store.claim(new_claim(owner="b"))
    assert (again.owner, again.state, again.reason) == ("b", "claimed", "")
    assert (await store.claim(new_claim(owner="c"))).owner == "b"


async def test_a_lease_is_kept_alive_by_the_writer_and_ends_with_its_release(store: Store) -> None:
    await settle(store, new_claim())
    await asyncio.sleep(0.7)  # more than two leases: only the heartbeat can have kept it
    assert await store.take("p", "settled", "b") is None
    await store.release("p", "a")
    taken = await store.take("p", "settled", "b")
    assert taken is not None
    assert (taken.owner, taken.attempts) == ("b", 1)


async def test_C08_a_claim_outlives_the_process_that_made_it(place: Place, store: Store) -> None:
    await settle(store, new_claim())
    await store.deposit(ALICE, 1000, "d")
    await store.reserve(hold("1"))
    await store.close()
    other = place.open(lease_seconds=100)
    await other.start()
    found = await other.get("p")
    assert found is not None
    assert (found.state, found.block, found.reference, found.intent) == ("settled", 7, "0x1", b"raw")
    assert await other.take("p", "settled", "b") is not None  # closing gave the leases back
    assert [ended.id for ended in await other.expire(10)] == ["1"]
    await other.close()


async def test_due_lists_what_nobody_works_on(store: Store) -> None:
    await store.claim(new_claim("working", "a", "1"))
    await store.claim(new_claim("lost", "a", "2"))
    await store.move("lost", "intend", "a")
    await store.move("lost", "lose", "a", next_check=50)
    await store.claim(new_claim("done", "a", "3"))
    await store.move("done", "confirm", "a", final=1)
    await store.claim(new_claim("shallow", "a", "4"))
    await store.move("shallow", "confirm", "a", final=0, next_check=70)
    assert [claim.payment_id for claim in await store.due(60)] == ["lost"]
    assert [claim.payment_id for claim in await store.due(80)] == ["lost", "shallow"]


async def test_unserved_settlements_are_listed_after_their_deadline(store: Store) -> None:
    await settle(store, new_claim())
    assert await store.expired(5) == []  # its lease lives
    await store.release("p", "a")
    assert [claim.payment_id for claim in await store.expired(5)] == ["p"]
    assert await store.expired(1) == []


async def test_C07_claims_are_forgotten_only_after_the_payment_can_no_longer_land(store: Store) -> None:
    await settle(store, new_claim())
    await store.move("p", "serve", "a", body=b"goods", kept_until=100, final=1)
    assert await store.prune(200) == 0
    found = await store.get("p")
    assert found is not None
    assert found.body is None  # the kept body goes, the claim stays
    assert await store.prune(FAR + 60) == 0  # the chain's clock may be behind ours
    assert await store.prune(FAR + 3601) == 1
    assert await store.get("p") is None


async def test_I13_one_payer_cannot_fill_the_store_with_open_payments(place: Place) -> None:
    store = place.open(max_open_per_payer=2)
    await store.start()
    made = await asyncio.gather(*[store.claim(new_claim(f"p{n}")) for n in range(3)], return_exceptions=True)
    assert sorted(type(one).__name__ for one in made) == ["Claim", "Claim", "TooManyRequests"]
    assert (await store.claim(new_claim("p9", payer="somebody else"))).owner == "a"
    await store.close()


async def test_C02_J08_who_opens_the_store_again_has_the_same_secret(place: Place, store: Store) -> None:
    second = place.open()
    await second.start()
    assert len(await store.secret()) == 32
    assert await second.secret() == await store.secret()
    await second.close()


async def test_B15_nonces_are_given_once_and_a_freed_one_first(store: Store) -> None:
    taken = await asyncio.gather(*[store.take_nonce("w", f"p{i}", 5) for i in range(20)])
    assert sorted(taken) == list(range(5, 25))
    await store.free_nonces("somebody else", "w", 9)
    await store.free_nonces("p4", "w", 9)
    assert await store.take_nonce("w", "again", 5) == 9
    assert await store.take_nonce("w", "again", 5) == 25
    assert await store.take_nonce("another", "p", 0) == 0


async def test_B15_a_freed_nonce_that_the_chain_has_passed_is_not_given(store: Store) -> None:
    assert await store.take_nonce("w", "a", 5) == 5
    await store.free_nonces("a")
    assert await store.take_nonce("w", "b", 8) == 8


def _in_child(store: Store, answer: SimpleQueue[str]) -> None:
    async def ask() -> None:
        try:
            await store.get("p")
        except ConfigError as e:
            answer.put(str(e))

    asyncio.run(ask())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_J06_a_process_that_forked_after_opening_is_refused(store: Store) -> None:
    context = multiprocessing.get_context("fork")
    answer: SimpleQueue[str] = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(store, answer))
    child.start()
    child.join(20)
    assert "forked" in answer.get()


def _open_again_and_again(address: str, faults: SimpleQueue[str]) -> None:
    async def work() -> None:
        for _ in range(10):
            store = open_store(address)
            try:
                await store.start()
                await store.close()
            except ConfigError as e:
                faults.put(str(e))

    asyncio.run(work())


def test_C02_workers_that_start_together_all_open_the_ledger(place: Place) -> None:
    context = multiprocessing.get_context("spawn")
    faults: SimpleQueue[str] = context.SimpleQueue()
    workers = [context.Process(target=_open_again_and_again, args=(place.address, faults)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert faults.empty()


async def test_a_store_that_was_not_opened_says_so(place: Place) -> None:
    with pytest.raises(ConfigError, match="not open"):
        await place.open().get("p")
