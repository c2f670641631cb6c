"""The journal's second table: calls that are paid from a balance, and the idempotency key that each was sent with.

| state | means | its key is used again for the same request? |
| --- | --- | --- |
| sent | a live call is using it, or its process died | yes, once that call or process is gone |
| unknown | sent, and no certain answer | yes |
| cooling | after no certain answer came a refusal | for ``COOL`` seconds, or until the third refusal |
| answered | the answer came; what it cost stands in ``charged`` | no |
| refused | the server says that nothing was charged | no |
| given up | by hand | no |

So what is sent once more after a lost answer, by us or by an SDK, is the same call to the server, and charged once
(C06). A row that is older than ``REUSED`` seconds is not used any more.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from typing import Final

__all__ = ["BalanceCall", "begin", "calls", "end", "find", "make_table", "purge", "reopen", "whole"]

REUSED: Final = 3 * 3600
"""Longer than an SDK's retries can take."""
COOL: Final = 150
"""Seconds; SDKs wait no longer than 120 between two tries."""
REFUSALS: Final = 3
"""SDKs try three times."""

_SCHEMA: Final = (
    """
CREATE TABLE IF NOT EXISTS calls (
    reference TEXT PRIMARY KEY, fingerprint BLOB NOT NULL, method TEXT NOT NULL, url TEXT NOT NULL,
    payer TEXT NOT NULL, key TEXT NOT NULL, created_at INTEGER NOT NULL, state TEXT NOT NULL,
    charged INTEGER, reason TEXT NOT NULL, ended_at INTEGER NOT NULL DEFAULT 0, refusals INTEGER NOT NULL DEFAULT 0,
    owner TEXT NOT NULL DEFAULT '', lease_until INTEGER NOT NULL DEFAULT 0
)""",
    "CREATE INDEX IF NOT EXISTS open_calls ON calls (fingerprint, payer) WHERE state IN ('sent', 'unknown', 'cooling')",
    "CREATE INDEX IF NOT EXISTS old_calls ON calls (created_at)",
)


@dataclass(frozen=True, slots=True)
class BalanceCall:
    """A row. ``charged`` in atomic units of the balance's asset as the receipt says; None where it does not."""

    reference: str
    fingerprint: bytes
    method: str
    url: str
    payer: str
    key: str
    created_at: int
    state: str = "sent"
    charged: int | None = None
    reason: str = ""


_COLUMNS: Final = ", ".join(f.name for f in fields(BalanceCall))
_WIDTH: Final = len(fields(BalanceCall))
_MARKS: Final = ", ".join("?" * (_WIDTH + 2))
_FIND: Final = f"""
SELECT {_COLUMNS}, owner, lease_until FROM calls
WHERE fingerprint = ? AND payer = ? AND state IN ('sent', 'unknown', 'cooling') AND created_at >= ?
    AND (state <> 'cooling' OR ended_at > ? AND refusals < {REFUSALS}) ORDER BY rowid
"""


def whole(text: str) -> str:
    """A server's words without halves of characters, which JSON can spell and SQLite does not take."""
    return text.encode(errors="replace").decode()


def make_table(db: sqlite3.Connection) -> None:
    """As often as one likes. Older versions of this library pass over the table."""
    for statement in _SCHEMA:
        db.execute(statement)


InUse = Callable[[str, str, int, int], bool]
"""Whether a live call uses the row with this reference, owner and lease, now."""


def find(db: sqlite3.Connection, fingerprint: bytes, payer: str, now: int, in_use: InUse) -> BalanceCall | None:
    """The open call for a request, unless a live one uses it."""
    for row in db.execute(_FIND, (fingerprint, payer, now - REUSED, now - COOL)).fetchall():
        call = BalanceCall(*row[:_WIDTH])
        if not in_use(call.reference, str(row[_WIDTH]), int(row[_WIDTH + 1]), now):
            return call
    return None


def begin(db: sqlite3.Connection, draft: BalanceCall, owner: str, lease: int, in_use: InUse) -> BalanceCall:
    """The open call for the draft's request, now ours, or the draft itself as a new row. In a transaction."""
    call = find(db, draft.fingerprint, draft.payer, draft.created_at, in_use)
    if call is not None:
        db.execute(
            "UPDATE calls SET state = 'sent', owner = ?, lease_until = ? WHERE reference = ?",
            (owner, lease, call.reference),
        )
        return call
    db.execute(f"INSERT INTO calls ({_COLUMNS}, owner, lease_until) VALUES ({_MARKS})", (*astuple(draft), owner, lease))
    return draft


def end(db: sqlite3.Connection, reference: str, state: str, now: int, charged: int | None, reason: str) -> None:
    """What became of a call."""
    db.execute(
        "UPDATE calls SET state = ?, charged = ?, reason = ?, ended_at = ?, refusals = refusals + ?, owner = '', "
        "lease_until = 0 WHERE reference = ? AND (? = 'answered' OR state IN ('sent', 'unknown', 'cooling'))",
        (state, charged, whole(reason[:500]), now, state == "cooling", reference, state),
    )


def reopen(db: sqlite3.Connection, reference: str) -> None:
    """A call that was answered is not."""
    db.execute("UPDATE calls SET state = 'sent' WHERE reference = ? AND state = 'answered'", (reference,))


def calls(db: sqlite3.Connection, *, only_open: bool) -> list[BalanceCall]:
    """The rows, oldest first."""
    where = "WHERE state IN ('sent', 'unknown')" if only_open else ""
    return [BalanceCall(*row) for row in db.execute(f"SELECT {_COLUMNS} FROM calls {where} ORDER BY rowid")]


def purge(db: sqlite3.Connection, before: int) -> None:
    """Forget what is old."""
    db.execute("DELETE FROM calls WHERE created_at < ?", (before,))
