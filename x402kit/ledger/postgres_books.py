"""The books as a whole in PostgreSQL: checked, rebuilt from the log, summed up. For the operator; it takes its time."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import psycopg
from psycopg.rows import TupleRow

from .port import Fault
from .postgres_base import Base

__all__ = ["Books"]

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
    ELSE false END"""
_KEYS: Final = """CASE type WHEN 'reserve' THEN 'reserve' WHEN 'capture' THEN 'end' WHEN 'void' THEN 'end'
    WHEN 'expire' THEN 'end' WHEN 'payment' THEN 'claim' WHEN 'reverse' THEN 'reverse' WHEN 'payout' THEN 'payout'
    WHEN 'refund' THEN 'payout-end' WHEN 'returned' THEN 'payout-end'
    WHEN 'deposit' THEN CASE WHEN key LIKE 'claim:%' THEN 'claim' ELSE 'deposit' END END"""
_ENDS: Final = "CASE h.state WHEN 'captured' THEN 'capture' WHEN 'voided' THEN 'void' WHEN 'expired' THEN 'expire' END"
_PAID_OUT: Final = "CASE p.state WHEN 'settled' THEN 'refund' WHEN 'failed' THEN 'returned' END"

_CHECKS: Final = {
    "an entry does not sum to zero": """
        SELECT owner, asset, 0, external::numeric + available + held + revenue + suspense FROM x402kit.entries
        WHERE external::numeric + available + held + revenue + suspense <> 0""",
    "an entry is not what the rules write": f"""
        SELECT owner, asset, 0, id FROM x402kit.entries
        WHERE NOT {_BY_THE_RULES} OR split_part(key, ':', 1) IS DISTINCT FROM {_KEYS}""",
    # Looked at beside the index that should keep them so: another version of the system's collation damages it.
    "two entries have the same key": """
        SELECT min(owner), min(asset), 1, count(*) FROM x402kit.entries GROUP BY key || '' HAVING count(*) > 1""",
    "a running balance is not the sum before it": """
        SELECT owner, asset, expected, balance FROM (SELECT owner, asset, balance,
            sum(available) OVER (PARTITION BY owner, asset ORDER BY id ROWS UNBOUNDED PRECEDING) AS expected
            FROM x402kit.entries) AS running WHERE expected <> balance""",
    "an entry is missing": """
        SELECT a.owner, a.asset, a.seq, coalesce(e.entries, 0) FROM x402kit.accounts a LEFT JOIN
            (SELECT owner, asset, count(*) AS entries FROM x402kit.entries GROUP BY owner, asset) e
            ON (e.owner, e.asset) = (a.owner, a.asset)
        WHERE a.seq <> coalesce(e.entries, 0)""",
    "a hold has no entry of its amount": """
        SELECT h.owner, h.asset, h.amount, coalesce(e.held, 0) FROM x402kit.holds h LEFT JOIN x402kit.entries e
        ON e.key = 'reserve:' || h.id AND e.owner = h.owner AND e.asset = h.asset
        WHERE e.held IS DISTINCT FROM h.amount""",
    "a hold's end is not in the log as it was": f"""
        SELECT h.owner, h.asset, h.captured, coalesce(e.revenue, 0) FROM x402kit.holds h LEFT JOIN x402kit.entries e
        ON e.key = 'end:' || h.id WHERE e.type IS DISTINCT FROM {_ENDS} OR coalesce(e.revenue, 0) <> h.captured
        OR coalesce(e.held, -h.amount) <> -h.amount""",
    "a reserve has neither hold nor end": """
        SELECT r.owner, r.asset, r.held, 0 FROM x402kit.entries r WHERE r.type = 'reserve'
        AND NOT EXISTS (SELECT 1 FROM x402kit.holds h
            WHERE (h.owner, h.asset, h.id) = (r.owner, r.asset, substr(r.key, 9)))
        AND NOT EXISTS (SELECT 1 FROM x402kit.entries WHERE key = 'end:' || substr(r.key, 9))""",
    "a claim is not in the log as it was booked": """
        SELECT c.payer, c.asset, c.captured, coalesce(e.revenue, 0) FROM x402kit.claims c LEFT JOIN x402kit.entries e
        ON e.key = 'claim:' || c.payment_id WHERE (c.booked_at <> 0) <> (e.id IS NOT NULL)
        OR (c.booked_at <> 0 AND (e.external <> -c.amount OR e.revenue <> c.captured))""",
    "a claim was reversed and the log does not say so": """
        SELECT c.payer, c.asset, c.amount, 0 FROM x402kit.claims c WHERE c.booked_at <> 0 AND (c.reason = 'reversed')
        <> EXISTS (SELECT 1 FROM x402kit.entries WHERE key = 'reverse:' || c.payment_id)""",
    "a payout is not in the log": f"""
        SELECT p.payer, p.asset, p.amount, coalesce(o.suspense, 0) FROM x402kit.payouts p
        LEFT JOIN x402kit.entries o ON o.key = 'payout:' || p.payment_id
        LEFT JOIN x402kit.entries e ON e.key = 'payout-end:' || p.payment_id
        WHERE o.suspense IS DISTINCT FROM p.amount OR coalesce(e.suspense, -p.amount) <> -p.amount
        OR e.type IS DISTINCT FROM {_PAID_OUT}""",
    "a payout of the log has no row": """
        SELECT e.owner, e.asset, e.suspense, 0 FROM x402kit.entries e WHERE e.type = 'payout'
        AND NOT EXISTS (SELECT 1 FROM x402kit.payouts WHERE payment_id = substr(e.key, 8))""",
    "available is not the log's": """
        SELECT e.owner, e.asset, e.available, coalesce(a.available, 0) FROM (SELECT owner, asset,
            sum(available) AS available FROM x402kit.entries GROUP BY owner, asset) e LEFT JOIN x402kit.accounts a
        ON (a.owner, a.asset) = (e.owner, e.asset) WHERE e.available <> coalesce(a.available, 0)""",
    "held is not the log's": """
        SELECT e.owner, e.asset, e.held, coalesce(a.held, 0) FROM (SELECT owner, asset, sum(held) AS held
            FROM x402kit.entries GROUP BY owner, asset) e LEFT JOIN x402kit.accounts a
        ON (a.owner, a.asset) = (e.owner, e.asset) WHERE e.held <> coalesce(a.held, 0)""",
    "held is not what open holds add up to": """
        SELECT coalesce(a.owner, h.owner), coalesce(a.asset, h.asset), coalesce(h.amount, 0), coalesce(a.held, 0)
        FROM x402kit.accounts a FULL JOIN (SELECT owner, asset, sum(amount) AS amount FROM x402kit.holds
            WHERE state = 'open' GROUP BY owner, asset) h ON h.owner = a.owner AND h.asset = a.asset
        WHERE coalesce(a.held, 0) <> coalesce(h.amount, 0)""",
    "an account has no entries": """
        SELECT owner, asset, 0, available FROM x402kit.accounts a WHERE (available <> 0 OR held <> 0 OR seq <> 0)
        AND NOT EXISTS (SELECT 1 FROM x402kit.entries e WHERE (e.owner, e.asset) = (a.owner, a.asset))""",
}
"""What → owner, asset, what was expected and what was found, of each that is wrong."""

_FAULTS_MAX: Final = 100
"""Of each kind: books that are all wrong must still be told in a screen."""
_REBUILD: Final = (
    "INSERT INTO x402kit.accounts (owner, asset, available, held, seq) SELECT owner, asset, sum(available), sum(held),"
    " max(id) FROM x402kit.entries GROUP BY owner, asset RETURNING 1"
)
_SUMMED: Final = ("external", "available", "held", "revenue", "suspense")
_TOTALS: Final = {
    "holds": "SELECT asset, sum(amount) FROM x402kit.holds WHERE state = 'open' GROUP BY asset",
    "payouts": (
        "SELECT network || '/' || CASE WHEN network LIKE 'eip155:%' THEN lower(asset) ELSE asset END, sum(amount)"
        " FROM x402kit.payouts WHERE state IN ('claimed', 'sent', 'unknown') GROUP BY 1"
    ),
}
_LOG: Final = f"SELECT asset, {', '.join(f'sum({name})' for name in _SUMMED)} FROM x402kit.entries GROUP BY asset"
_AT_ONE_MOMENT: Final = "REPEATABLE READ READ ONLY"


class Books(Base):
    """The port's ``Books``."""

    async def verify(self) -> list[Fault]:
        faults: list[Fault] = []
        async with self._aside(_AT_ONE_MOMENT) as connection:
            asked = [(what, await _ask(connection, f"{sql} LIMIT {_FAULTS_MAX}")) for what, sql in _CHECKS.items()]
            for what, rows in asked:
                for owner, asset, expected, found in await rows.fetchall():
                    faults.append(Fault(what, owner, asset, int(expected), int(found)))
        return faults

    async def rebuild(self) -> int:
        async with self._aside() as connection:
            # Nobody moves money meanwhile; who reads a balance is not kept waiting until the old ones are deleted.
            await connection.execute("LOCK TABLE x402kit.accounts IN EXCLUSIVE MODE")
            await connection.execute("DELETE FROM x402kit.accounts")
            return len(await (await _ask(connection, _REBUILD)).fetchall())

    async def totals(self) -> dict[str, dict[str, int]]:
        # A damaged log may lack what the other tables have.
        made: defaultdict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys((*_SUMMED, *_TOTALS), 0))
        async with self._aside(_AT_ONE_MOMENT) as connection:
            log = await _ask(connection, _LOG)
            open_sums = {name: await _ask(connection, sql) for name, sql in _TOTALS.items()}
            for asset, *sums in await log.fetchall():
                made[asset] |= {name: int(value) for name, value in zip(_SUMMED, sums, strict=True)}
            for name, rows in open_sums.items():
                for asset, total in await rows.fetchall():
                    made[asset][name] = int(total)
        return dict(made)


async def _ask(connection: psycopg.AsyncConnection[TupleRow], sql: str) -> psycopg.AsyncCursor[TupleRow]:
    """Send a statement in the connection's pipeline; its rows come when they are fetched."""
    return await connection.execute(sql.encode(), prepare=True)
