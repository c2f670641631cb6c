"""Lightning invoices in the ledger, the same in every kind of store: kept, asked for, counted, forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3

import psycopg
import pytest

from tests.support.postgres import query
from tests.support.stores import Place
from tests.test_store import new_claim
from tests.test_store import store as store
from x402kit.ledger.port import Store
from x402kit.model import INVOICE_KEPT_SECONDS, Claim, Invoice

DAY = 86_400
LAST = INVOICE_KEPT_SECONDS  # added to its expiry: the last moment at which an invoice is kept


def invoice(payment_hash: str = "ab", *, amount: int = 21_000, expires_at: int = 1000, next_check: int = 10) -> Invoice:
    return Invoice(
        payment_hash,
        "bip122:000000000019d6689c085ae165831e93",
        amount,
        "lnbc210n1",
        b"f" * 32,
        "r",
        b'{"calls":1}',
        1,
        expires_at,
        next_check,
    )


DEAD = invoice()._replace(state="dead")


def paid(payment_hash: str, valid_until: int) -> Claim:
    return new_claim(f"lightning:{payment_hash}", payer=payment_hash).changed(valid_until=valid_until)


async def test_an_invoice_comes_back_as_it_was_issued(store: Store) -> None:
    await store.add_invoice(invoice())
    assert await store.get_invoice("ab") == invoice()
    assert await store.get_invoice("AB") is None


async def test_of_two_invoices_with_one_hash_the_first_stays(store: Store) -> None:
    await asyncio.gather(*[store.add_invoice(invoice()) for _ in range(3)])
    await store.note_invoice("ab", state="settled")
    await store.add_invoice(invoice(amount=1, expires_at=9999))
    assert await store.get_invoice("ab") == invoice()._replace(state="settled")


@pytest.mark.parametrize("amount", [0, -1, 2**63, True])
async def test_E09_an_amount_that_is_none_is_refused(store: Store, amount: int) -> None:
    with pytest.raises(ValueError, match="an amount"):
        await store.add_invoice(invoice(amount=amount))
    assert await store.get_invoice("ab") is None


async def test_E09_the_tables_refuse_it_too(place: Place, store: Store) -> None:
    await store.add_invoice(invoice())
    with pytest.raises((sqlite3.IntegrityError, psycopg.errors.CheckViolation)):
        place.query("UPDATE invoices SET amount = 0")


async def test_due_lists_open_invoices_in_the_order_of_their_checks(store: Store) -> None:
    for name, at in (("late", 30), ("early", 10), ("middle", 20), ("paid", 15), ("far", 90)):
        await store.add_invoice(invoice(name, next_check=at, expires_at=5))
    await store.note_invoice("paid", state="settled")
    assert [row.payment_hash for row in await store.due_invoices(30)] == ["early", "middle", "late"]
    assert [row.payment_hash for row in await store.due_invoices(30, limit=2)] == ["early", "middle"]
    await store.note_invoice("early", next_check=80)
    assert [row.payment_hash for row in await store.due_invoices(30)] == ["middle", "late"]
    assert await store.due_invoices(9) == []


async def test_only_the_state_and_the_check_of_an_invoice_can_be_set(store: Store) -> None:
    await store.add_invoice(invoice())
    await store.note_invoice("ab", next_check=7, state="dead")
    assert await store.get_invoice("ab") == invoice(next_check=7)._replace(state="dead")
    for columns in ({"amount": 1}, {"state": "open", "terms": b""}, {"state = 'open', amount": 1}, {}):
        with pytest.raises(ValueError, match="only its state and next_check"):
            await store.note_invoice("ab", **columns)
    await store.note_invoice("unknown", state="dead")
    assert await store.get_invoice("ab") == invoice(next_check=7)._replace(state="dead")


async def test_invoices_count_while_they_are_open_and_not_expired(store: Store) -> None:
    assert await store.count_open_invoices(0) == 0
    for number in range(4):
        await store.add_invoice(invoice(str(number), expires_at=100 * (number + 1)))
    await store.note_invoice("3", state="settled")
    counted = [await store.count_open_invoices(now) for now in (0, 99, 100, 299, 300)]
    assert counted == [3, 3, 2, 1, 0]


async def test_J08_invoices_are_there_after_a_restart(place: Place, store: Store) -> None:
    await store.add_invoice(invoice())
    await store.close()
    again = place.open()
    await again.start()
    assert await again.get_invoice("ab") == invoice()
    await again.close()


async def test_an_invoice_is_forgotten_a_day_after_it_expired(store: Store) -> None:
    await store.add_invoice(DEAD)
    await store.add_invoice(invoice("young", expires_at=2000)._replace(state="settled"))
    assert await store.prune(1000 + LAST) == 0
    assert await store.prune(1000 + LAST + 1) == 1
    assert await store.get_invoice("ab") is None
    assert await store.get_invoice("young") is not None


async def test_G05_an_invoice_that_nobody_looked_at_is_not_forgotten(store: Store) -> None:
    """The server was away for days, and it may be paid: the node is asked first."""
    await store.add_invoice(invoice())
    assert await store.prune(1000 + 10 * DAY) == 0
    assert await store.due_invoices(1000 + 10 * DAY) == [invoice()]
    await store.note_invoice("ab", state="dead")
    assert await store.prune(1000 + 10 * DAY) == 1


async def test_C07_a_claim_is_never_forgotten_before_its_invoice(store: Store) -> None:
    """Else its token, good by itself, would be admitted once more."""
    await store.add_invoice(DEAD)
    for claim, state in ((paid("ab", 1000 + 2 * DAY), "served"), (paid("other", 1000), "failed")):
        await store.claim(claim)
        await store.note(claim.payment_id, state=state, final=1)
    seen: list[tuple[bool, bool]] = []
    for now in (1000, 1000 + LAST, 1000 + LAST + 1, 1000 + 2 * DAY + 3600, 1000 + 2 * DAY + 3601):
        await store.prune(now)
        seen.append((await store.get_invoice("ab") is not None, await store.get("lightning:ab") is not None))
    assert seen == [(True, True), (True, True), (False, True), (False, True), (False, False)]
    assert await store.get("lightning:other") is None  # it has no invoice, and goes by its own time


@pytest.mark.parametrize("state", ["served", "credited", "failed"])
async def test_C07_a_claim_that_is_over_stays_while_its_invoice_waits_to_be_forgotten(store: Store, state: str) -> None:
    """Whatever both times are: each call takes a bite of each kind, and the invoice's turn may be later."""
    expiries = [*range(1001), 5000]
    await asyncio.gather(
        *[store.add_invoice(DEAD._replace(payment_hash=str(n), expires_at=at)) for n, at in enumerate(expiries)]
    )
    await store.claim(paid("1001", 0))
    await store.note("lightning:1001", state=state, final=1)
    there: list[tuple[bool, bool]] = []
    for _ in range(3):
        await store.prune(10 * DAY)
        there.append((await store.get_invoice("1001") is not None, await store.get("lightning:1001") is not None))
    # Never both by one call: who found the invoice a moment ago still finds the claim.
    assert there == [(True, True), (False, True), (False, False)]


async def test_J08_a_ledger_without_invoices_gets_them_and_keeps_its_claims(place: Place, store: Store) -> None:
    await store.claim(new_claim())
    before = "DROP TABLE {0}invoices", "UPDATE {0}meta SET value = '{1}' WHERE key = 'schema'"
    if place.address.startswith("postgresql:"):
        for statement in before:
            query(place.address, statement.format("x402kit.", 1))
    else:
        with contextlib.closing(sqlite3.connect(place.address, isolation_level=None)) as connection:
            for statement in before:
                connection.execute(statement.format("", 2))
    stores = [place.open() for _ in range(3)]
    await asyncio.gather(*[made.start() for made in stores])
    for made in stores:
        await made.add_invoice(invoice())
        assert await made.get_invoice("ab") == invoice()
    # The process of the version before, which has never heard of them, goes on.
    assert await store.move("p", "confirm", "a")
    assert await store.move("p", "serve", "a", final=1)
    for made in stores:
        assert await made.verify() == []
        await made.close()


async def test_no_question_about_invoices_reads_the_whole_table(place: Place, store: Store) -> None:
    await store.add_invoice(invoice())
    for sql in (
        "SELECT * FROM invoices WHERE state = 'open' AND next_check <= 9 ORDER BY next_check LIMIT 9",
        "SELECT count(*) FROM invoices WHERE state = 'open' AND expires_at > 9",
        "SELECT payment_hash FROM invoices WHERE expires_at < 9 ORDER BY expires_at LIMIT 1000",
    ):
        if place.address.startswith("postgresql:"):
            settings = "-c search_path=x402kit -c enable_seqscan=off -c enable_sort=off"
            with psycopg.connect(place.address, options=settings) as connection:
                plan = str(connection.execute(f"EXPLAIN {sql}".encode()).fetchall())
        else:
            plan = str(place.query(f"EXPLAIN QUERY PLAN {sql}"))
        assert "invoices_" in plan
        assert not re.search("Seq Scan|Sort|SCAN|TEMP B-TREE", plan)
