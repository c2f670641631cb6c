"""The books as a whole: checked, rebuilt from the log, summed up."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

from .port import Fault
from .sqlite_file import SQLiteFile

__all__ = ["SQLiteBooks"]

_ENDS: Final = "CASE h.state WHEN 'captured' THEN 'capture' WHEN 'voided' THEN 'void' WHEN 'expired' THEN 'expire' END"
_BY_THE_RULES: Final = """CASE type
    WHEN 'deposit' THEN external < 0 AND held = 0 AND suspense = 0 AND available >= 0 AND revenue >= 0
    WHEN 'payment' THEN external < 0 AND held = 0 AND suspense = 0 AND available >= 0 AND revenue >= 0
    WHEN 'reserve' THEN external = 0 AND held > 0 AND available = -held AND revenue = 0
    WHEN 'capture' THEN external = 0 AND held < 0 AND revenue >= 0 AND suspense = 0
    WHEN 'void' THEN external = 0 AND held < 0 AND available = -held AND revenue = 0
    WHEN 'expire' THEN external = 0 AND held < 0 AND available = -held AND revenue = 0
    WHEN 'payout' THEN external = 0 AND held = 0 AND suspense > 0 AND available = -suspense AND revenue = 0
    WHEN 'refund' THEN external > 0 AND held = 0 AND suspense = -external AND available = 0 AND revenue = 0
    WHEN 'returned' THEN external = 0 AND held = 0 AND available > 0 AND suspense = -available AND revenue = 0
    WHEN 'reverse' THEN external > 0 AND held = 0 AND revenue = 0 AND available <= 0 AND suspense <= 0
    ELSE 0 END"""
_KEYS: Final = """CASE type WHEN 'reserve' THEN 'reserve' WHEN 'capture' THEN 'end' WHEN 'void' THEN 'end'
    WHEN 'expire' THEN 'end' WHEN 'payment' THEN 'claim' WHEN 'reverse' THEN 'reverse' WHEN 'payout' THEN 'payout'
    WHEN 'refund' THEN 'payout-end' WHEN 'returned' THEN 'payout-end'
    WHEN 'deposit' THEN iif(key LIKE 'claim:%', 'claim', 'deposit') END"""

_CHECKS: Final = {
    "an entry does not sum to zero": """
        SELECT owner, asset, 0, external + available + held + revenue + suspense FROM log
        WHERE external + available + held + revenue + suspense <> 0""",
    "an entry is not what the rules write": f"""
        SELECT owner, asset, 0, id FROM log
        WHERE NOT {_BY_THE_RULES} OR substr(key, 1, instr(key, ':') - 1) IS NOT {_KEYS}""",
    # Looked at beside the index that should keep them so.
    "two entries have the same key": """
        SELECT min(owner), min(asset), 1, count(*) FROM log GROUP BY key || '' HAVING count(*) > 1""",
    "a running balance is not the sum before it": """
        SELECT owner, asset, expected, balance FROM (SELECT account, balance,
            sum(available) OVER (PARTITION BY account ORDER BY id ROWS UNBOUNDED PRECEDING) AS expected FROM entries)
        e JOIN accounts ON number = account WHERE expected <> balance""",
    "a hold has no entry of its amount": """
        SELECT h.owner, h.asset, h.amount, ifnull(e.held, 0) FROM holds h LEFT JOIN log e
        ON e.key = 'reserve:' || h.id AND e.owner = h.owner AND e.asset = h.asset WHERE e.held IS NOT h.amount""",
    "a hold's end is not in the log as it was": f"""
        SELECT h.owner, h.asset, h.captured, ifnull(e.revenue, 0) FROM holds h LEFT JOIN entries e
        ON e.key = 'end:' || h.id WHERE e.type IS NOT {_ENDS} OR ifnull(e.revenue, 0) <> h.captured
        OR ifnull(e.held, -h.amount) <> -h.amount""",
    "a reserve has neither hold nor end": """
        SELECT r.owner, r.asset, r.held, 0 FROM log r WHERE r.type = 'reserve'
        AND NOT EXISTS (SELECT 1 FROM holds WHERE id = substr(r.key, 9))
        AND NOT EXISTS (SELECT 1 FROM entries WHERE key = 'end:' || substr(r.key, 9))""",
    "a claim is not in the log as it was booked": """
        SELECT c.payer, c.asset, c.captured, ifnull(e.revenue, 0) FROM claims c LEFT JOIN entries e
        ON e.key = 'claim:' || c.payment_id WHERE (c.booked_at <> 0) <> (e.id IS NOT NULL)
        OR (c.booked_at <> 0 AND (e.external <> -c.amount OR e.revenue <> c.captured))""",
    "a claim was reversed and the log does not say so": """
        SELECT c.payer, c.asset, c.amount, 0 FROM claims c WHERE c.booked_at <> 0
        AND (c.reason = 'reversed') <> EXISTS (SELECT 1 FROM entries WHERE key = 'reverse:' || c.payment_id)""",
    "a payout is not in the log": """
        SELECT p.payer, p.asset, p.amount, ifnull(o.suspense, 0) FROM payouts p
        LEFT JOIN entries o ON o.key = 'payout:' || p.payment_id
        LEFT JOIN entries e ON e.key = 'payout-end:' || p.payment_id
        WHERE o.suspense IS NOT p.amount OR ifnull(e.suspense, -p.amount) <> -p.amount
        OR e.type IS NOT CASE p.state WHEN 'settled' THEN 'refund' WHEN 'failed' THEN 'returned' END""",
    "a payout of the log has no row": """
        SELECT owner, asset, suspense, 0 FROM log WHERE type = 'payout'
        AND NOT EXISTS (SELECT 1 FROM payouts WHERE payment_id = substr(log.key, 8))""",
}
"""What → owner, asset, what was expected and what was found, of each that is wrong."""

_FAULTS_MAX: Final = 100
"""Of each kind: a file that is all wrong must still be told in a screen."""
_REBUILD: Final = (
    "UPDATE accounts SET (available, held) = (SELECT ifnull(sum(e.available), 0), ifnull(sum(e.held), 0)"
    " FROM entries e WHERE e.account = number)"
)
_SUMMED: Final = ("external", "available", "held", "revenue", "suspense")


def _sum(column: str) -> str:
    """Two sums that can't overflow, to be put together as Python's integers."""
    return f"sum({column} >> 32), sum({column} & 4294967295)"


def _whole(high: int, low: int) -> int:
    return (high << 32) + low


class SQLiteBooks(SQLiteFile):
    """``Books``: what an operator asks."""

    async def verify(self) -> list[Fault]:
        return await self._read(lambda c: _at_one_moment(c, _verify))

    async def rebuild(self) -> int:
        return await self._write(lambda c: c.execute(_REBUILD).rowcount)

    async def totals(self) -> dict[str, dict[str, int]]:
        return await self._read(lambda c: _at_one_moment(c, _totals))


def _at_one_moment(connection: sqlite3.Connection, read: Any) -> Any:
    """All statements see the same state of the file."""
    if connection.in_transaction:  # a ledger in memory reads where it writes
        return read(connection)
    connection.execute("BEGIN")
    try:
        return read(connection)
    finally:
        connection.execute("COMMIT")


def _verify(connection: sqlite3.Connection) -> list[Fault]:
    faults = [
        Fault(what, *row) for what, sql in _CHECKS.items() for row in connection.execute(f"{sql} LIMIT {_FAULTS_MAX}")
    ]
    return [*_verify_file(connection), *faults, *_verify_balances(connection)]


def _verify_file(connection: sqlite3.Connection) -> Iterator[Fault]:
    """An index that is damaged alone makes no statement fail, and lets a key be used twice (E01)."""
    for (said,) in connection.execute(f"PRAGMA integrity_check({_FAULTS_MAX})"):
        if said != "ok":
            yield Fault(f"the file is damaged: {said}")


def _verify_balances(connection: sqlite3.Connection) -> Iterator[Fault]:
    logged = f"SELECT owner, asset, {_sum('available')}, {_sum('held')} FROM log GROUP BY account"
    holds = f"SELECT owner, asset, {_sum('amount')} FROM holds WHERE state = 'open' GROUP BY owner, asset"
    balances = "SELECT owner, asset, available, held FROM accounts WHERE available <> 0 OR held <> 0"
    open_holds = {(owner, asset): _whole(*sums) for owner, asset, *sums in connection.execute(holds)}
    stands = {(owner, asset): balance for owner, asset, *balance in connection.execute(balances)}
    for owner, asset, *sums in connection.execute(logged):
        available, held = stands.pop((owner, asset), (0, 0))
        if available != _whole(*sums[:2]):
            yield Fault("available is not the log's", owner, asset, _whole(*sums[:2]), available)
        if held != _whole(*sums[2:]):
            yield Fault("held is not the log's", owner, asset, _whole(*sums[2:]), held)
        if held != open_holds.get((owner, asset), 0):
            yield Fault("held is not what open holds add up to", owner, asset, open_holds.get((owner, asset), 0), held)
    for (owner, asset), (available, _) in stands.items():
        yield Fault("an account has no entries", owner, asset, 0, available)


def _totals(connection: sqlite3.Connection) -> dict[str, dict[str, int]]:
    # A damaged log may lack what the other tables have.
    made: defaultdict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys((*_SUMMED, "holds", "payouts"), 0))
    log = f"SELECT asset, {', '.join(map(_sum, _SUMMED))} FROM log GROUP BY asset"
    for asset, *sums in connection.execute(log):
        halves = zip(sums[::2], sums[1::2], strict=True)
        made[asset] |= {name: _whole(*half) for name, half in zip(_SUMMED, halves, strict=True)}
    holds = f"SELECT asset, {_sum('amount')} FROM holds WHERE state = 'open' GROUP BY asset"
    for asset, *sums in connection.execute(holds):
        made[asset]["holds"] = _whole(*sums)
    coin = "network || '/' || iif(network LIKE 'eip155:%', lower(asset), asset)"
    payouts = (
        f"SELECT {coin} AS coin, {_sum('amount')} FROM payouts WHERE state IN ('claimed', 'sent', 'unknown')"
        " GROUP BY coin"
    )
    for asset, *sums in connection.execute(payouts):
        made[asset]["payouts"] = _whole(*sums)
    return dict(made)
