"""The statements of the PostgreSQL store that move claims and write the books; each move is one (rules.py).

Their parameters are named: a row's columns as they are, ``account``, ``coin`` and ``at`` for the entry, ``_id`` and
``_owner`` for the row that is moved.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any, Final

from ..model import Account, Claim, Hold
from .postgres_base import FREE
from .postgres_schema import CLAIM_COLUMNS, CLOCK, OPEN_SQL
from .rules import MOVES

__all__ = [
    "FREE_TICKETS",
    "INSERT",
    "NAMES",
    "PRUNE",
    "TAKE_NONCE",
    "WRITE_OFF",
    "account_of",
    "assignments",
    "book_sql",
    "books",
    "entry_sql",
    "move_sql",
    "serve_held_sql",
    "take_sql",
    "values_of",
]

NAMES: Final = ", ".join(CLAIM_COLUMNS)
_SETTABLE: Final = (*CLAIM_COLUMNS, "booked_at")
_LEAST: Final = {"captured": "least(%(captured)s, amount)"}


def values_of(columns: tuple[str, ...], prefix: str = "") -> str:
    """Parameters for a row; a lease starts now."""
    kinds = {"lease_until": f"{CLOCK} + %(lease)s", "body": f"%({prefix}body)s::bytea"}
    return ", ".join(kinds.get(name, f"%({prefix}{name})s") for name in columns)


INSERT: Final = (
    f"INSERT INTO x402kit.claims ({NAMES}) SELECT "
    + values_of(CLAIM_COLUMNS)
    + f" WHERE (SELECT count(*) FROM x402kit.claims WHERE payer = %(payer)s AND state IN {OPEN_SQL}) < %(most)s"
    " ON CONFLICT (payment_id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in CLAIM_COLUMNS if name != "payment_id")
    + " WHERE claims.state = 'failed' AND claims.spent = 0 RETURNING lease_until"
)

_ENTRY: Final = (
    "INSERT INTO x402kit.entries (owner, asset, id, key, type, external, available, held, revenue, suspense, balance,"
    " at, resource, request_id, reference)"
)

TAKE_NONCE: Final = (
    "WITH mine AS (SELECT nonce FROM x402kit.nonces WHERE wallet = %(wallet)s AND ticket = %(ticket)s),"
    # A free one below the chain's count was used by something else: not ours to give any more.
    " freed AS (UPDATE x402kit.nonces SET free = 0, holder = %(holder)s, ticket = %(ticket)s WHERE wallet = %(wallet)s"
    " AND free = 1 AND nonce = (SELECT min(nonce) FROM x402kit.nonces WHERE wallet = %(wallet)s AND free = 1 AND"
    " nonce >= %(floor)s) AND NOT EXISTS (SELECT 1 FROM mine) RETURNING nonce),"
    " made AS (INSERT INTO x402kit.nonces (wallet, nonce, holder, free, ticket) SELECT %(wallet)s, greatest(%(floor)s,"
    " coalesce(max(nonce) + 1, 0)), %(holder)s, 0, %(ticket)s FROM x402kit.nonces WHERE wallet = %(wallet)s HAVING NOT"
    " EXISTS (SELECT 1 FROM freed) AND NOT EXISTS (SELECT 1 FROM mine) ON CONFLICT DO NOTHING RETURNING nonce),"
    " old AS (DELETE FROM x402kit.nonces WHERE wallet = %(wallet)s AND nonce < %(floor)s - 1000 AND EXISTS (SELECT 1"
    " FROM made))"
    " SELECT nonce FROM mine UNION ALL SELECT nonce FROM freed UNION ALL SELECT nonce FROM made"
)

FREE_TICKETS: Final = (
    "UPDATE x402kit.nonces SET free = 1 WHERE (wallet, ticket) IN"
    " (SELECT * FROM unnest(%(wallets)s::text[], %(tickets)s::text[])) RETURNING 1"
)


def entry_sql(
    source: str, *, key: str, kind: str, amounts: tuple[str, str, str, str, str], balance: str, told: str, id: str
) -> str:
    """The statement's end: one entry from ``source``; ``amounts`` in the order of rules.Postings."""
    return (
        f"{_ENTRY} SELECT %(account)s, %(coin)s, {id}, {key}, {kind}, {', '.join(amounts)}, {balance}, %(at)s, {told}"
        f" FROM {source}"
    )


def books(account: Account | None, at: int | None = None) -> dict[str, Any]:
    """The parameters of an entry."""
    if account is None:
        return {}
    return {"account": account.owner, "coin": account.asset, "at": int(time.time()) if at is None else at}


def account_of(claim: Claim) -> Account:
    """The balance that a claim's payment feeds."""
    return Account.of(claim.network, claim.asset, claim.payer)


def assignments(columns: tuple[str, ...], known: tuple[str, ...]) -> str:
    unknown = set(columns) - set(known)
    assert not unknown, unknown
    # A payment is never charged for more than it brought (rules.payment).
    return ", ".join(f"{name} = {_LEAST.get(name, f'%({name})s')}" for name in columns)


PRUNE: Final = (
    *(
        f"WITH gone AS (UPDATE x402kit.{table} SET body = NULL WHERE ({key}) IN (SELECT {key} FROM x402kit.{table}"
        " WHERE body IS NOT NULL AND kept_until < %(now)s LIMIT 1000 FOR UPDATE SKIP LOCKED) RETURNING 1)"
        " SELECT 0 FROM (SELECT count(*) FROM gone) AS c"
        for table, key in (("claims", "payment_id"), ("holds", "owner, asset, id"))
    ),
    "WITH gone AS (DELETE FROM x402kit.claims WHERE payment_id IN (SELECT payment_id FROM x402kit.claims WHERE"
    " valid_until < %(over)s AND (state = 'failed' OR (state IN ('served', 'credited') AND final = 1 AND kept_until <"
    " %(now)s)) AND NOT EXISTS (SELECT 1 FROM x402kit.invoices WHERE payment_hash = substr(payment_id, 11) AND"
    " starts_with(payment_id, 'lightning:')) LIMIT 1000 FOR UPDATE SKIP LOCKED) RETURNING 1) SELECT count(*) FROM gone",
    "WITH gone AS (DELETE FROM x402kit.holds WHERE (owner, asset, id) IN (SELECT owner, asset, id FROM x402kit.holds"
    " WHERE state <> 'open' AND ended_at < %(gone)s AND kept_until < %(now)s LIMIT 1000 FOR UPDATE SKIP LOCKED)"
    " RETURNING 1) SELECT count(*) FROM gone",
    # After the claims: a claim goes at the earliest by the call after the one that its invoice went by.
    "WITH gone AS (DELETE FROM x402kit.invoices WHERE payment_hash IN (SELECT payment_hash FROM x402kit.invoices WHERE"
    " expires_at < %(paid)s AND state <> 'open' ORDER BY expires_at LIMIT 1000 FOR UPDATE SKIP LOCKED) RETURNING 1)"
    " SELECT count(*) FROM gone",
    "WITH gone AS (DELETE FROM x402kit.proofs WHERE proof_id IN (SELECT proof_id FROM x402kit.proofs WHERE"
    " until < %(now)s LIMIT 1000 FOR UPDATE SKIP LOCKED) RETURNING 1) SELECT count(*) FROM gone",
)


@lru_cache(maxsize=8)
def take_sql(table: str) -> str:
    return (
        f"WITH former AS (SELECT owner FROM x402kit.{table} WHERE payment_id = %(id)s),"
        f" taken AS (UPDATE x402kit.{table} SET owner = %(owner)s, lease_until = {CLOCK} + %(lease)s, attempts ="
        " attempts + CASE WHEN state = 'settled' AND owner <> %(owner)s THEN 1 ELSE 0 END"
        # Ours already: asked again after its answer was lost.
        f" WHERE payment_id = %(id)s AND state = %(state)s AND ({FREE} OR owner = %(owner)s) RETURNING {NAMES}),"
        " given AS (UPDATE x402kit.nonces SET free = 1 WHERE %(state)s = 'claimed' AND holder IN (SELECT owner FROM"
        " former WHERE owner <> %(owner)s) AND EXISTS (SELECT 1 FROM taken))"
        " SELECT * FROM taken"
    )


@lru_cache(maxsize=64)
def move_sql(table: str, move: str, columns: tuple[str, ...], owned: bool) -> str:
    """The one statement that makes a move: the states that it may start from guard it, and its owner."""
    start, end = MOVES[move]
    changes = ", ".join(filter(None, (f"state = '{end}'", assignments(columns, _SETTABLE))))
    states = "', '".join(start)
    owner = " AND owner = %(_owner)s" if owned else ""
    return f"UPDATE x402kit.{table} SET {changes} WHERE payment_id = %(_id)s AND state IN ('{states}'){owner}"


_INTO: Final = (
    "INSERT INTO x402kit.accounts AS a (owner, asset, available, held, seq) SELECT %(account)s, %(coin)s, {available},"
    " {held}, {steps} FROM c ON CONFLICT (owner, asset) DO UPDATE SET available = a.available + excluded.available,"
    " held = a.held + excluded.held, seq = a.seq + {steps} RETURNING available, seq"
)
_TOLD: Final = "c.resource, c.request_id, c.reference"


_KINDS: Final = {
    # Move → its entry's key, type, amounts in the order of rules.Postings, and how the row's captured stands in them.
    ("claims", "serve"): ("claim", "payment", ("-c.amount", "c.amount - c.captured", "0", "c.captured", "0")),
    ("claims", "credit"): ("claim", "deposit", ("-c.amount", "c.amount - c.captured", "0", "c.captured", "0")),
    ("payouts", "confirm"): ("payout-end", "refund", ("c.amount", "0", "0", "0", "-c.amount")),
    ("payouts", "drop"): ("payout-end", "returned", ("0", "c.amount", "0", "0", "-c.amount")),
    ("payouts", "fail"): ("payout-end", "returned", ("0", "c.amount", "0", "0", "-c.amount")),
}


@lru_cache(maxsize=64)
def book_sql(table: str, move: str, columns: tuple[str, ...], owned: bool) -> str:
    """A move that is written in the books (rules.payment, refund, returned), with its entry."""
    key, kind, amounts = _KINDS[table, move]
    entry = entry_sql(
        "c, m",
        id="m.seq",
        key=f"'{key}:' || c.payment_id",
        kind=f"'{kind}'",
        amounts=amounts,
        balance="m.available",
        told=_TOLD,
    )
    into = _INTO.format(available=amounts[1], held="0", steps="1")
    returning = "RETURNING payment_id, amount, captured, resource, request_id, reference"
    return f"WITH c AS ({move_sql(table, move, columns, owned)} {returning}), m AS ({into}) {entry} RETURNING id"


@lru_cache(maxsize=8)
def serve_held_sql(columns: tuple[str, ...]) -> str:
    """The payment becomes balance, and a hold of it is reserved at once: two entries, one statement."""
    moved = (
        f"{move_sql('claims', 'serve', columns, True)} AND amount = %(hold_amount)s AND NOT EXISTS (SELECT 1 FROM"
        " x402kit.entries WHERE key = 'reserve:' || %(hold_id)s)"
    )
    names = tuple(name for name in Hold._fields if name not in ("owner", "asset", "lease_until"))
    hold = (
        f"INSERT INTO x402kit.holds (owner, asset, {', '.join(names)}) SELECT %(account)s, %(coin)s,"
        f" {values_of(names, 'hold_')} FROM c"
    )
    paid = entry_sql(
        "c, m",
        id="m.seq - 1",
        key="'claim:' || c.payment_id",
        kind="'payment'",
        amounts=("-c.amount", "c.amount", "0", "0", "0"),
        balance="m.available + c.amount",
        told=_TOLD,
    )
    held = entry_sql(
        "c, m",
        id="m.seq",
        key="'reserve:' || %(hold_id)s",
        kind="'reserve'",
        amounts=("0", "-c.amount", "c.amount", "0", "0"),
        balance="m.available",
        told="%(hold_resource)s, %(hold_request_id)s, ''",
    )
    into = _INTO.format(available="0", held="amount", steps="2")
    returning = "RETURNING payment_id, amount, resource, request_id, reference"
    return f"WITH c AS ({moved} {returning}), m AS ({into}), h AS ({hold}), p AS ({paid}) {held} RETURNING id"


WRITE_OFF: Final = (
    # Only what stands in the books can be taken out of them. The lock before it makes ``a`` the balance of this moment.
    "WITH c AS (UPDATE x402kit.claims SET final = 1, reason = 'reversed' WHERE payment_id = %(_id)s AND state IN"
    " ('served', 'credited') AND reason <> 'reversed' RETURNING payment_id, amount, resource, request_id, reference),"
    " a AS (SELECT least(available, (SELECT amount FROM c)) AS taken FROM x402kit.accounts WHERE owner = %(account)s"
    " AND asset = %(coin)s AND EXISTS (SELECT 1 FROM x402kit.entries WHERE key = 'claim:' || %(_id)s)),"
    " m AS (UPDATE x402kit.accounts SET available = available - a.taken, seq = seq + 1 FROM a, c WHERE owner ="
    " %(account)s AND asset = %(coin)s RETURNING accounts.available, seq) "
    + entry_sql(
        "c, a, m",
        id="m.seq",
        key="'reverse:' || c.payment_id",
        kind="'reverse'",
        amounts=("c.amount", "-a.taken", "0", "0", "a.taken - c.amount"),
        balance="m.available",
        told=_TOLD,
    )
    + " RETURNING id"
)
