"""What was signed, written down before it is sent (M03), and what was spent (M04). SQLite, on disk or in memory.

| state | means | shown again for the same request? | its budget |
| --- | --- | --- | --- |
| signed | a live call is using it, or its process died | yes, once that call or process is gone | spent |
| unknown | sent, and no certain answer | yes | spent |
| refused | the server says that no money moved, or it was never sent | until it can't land any more | spent |
| released | a refused one after that time | no | given back if it was never sent |
| used | the server says that it is spent (403) | no | spent |
| accepted | goods came | no | spent |
| given up | by hand | no | spent |

That no money moved is the server's word, and who has seen a payment may settle it until it can't land any more: a cap
that believed it would be none (M04).

A payment on Lightning is ``signed`` before its invoice is paid (lightning.py); one that certainly failed is released,
budget and all, at once. An unknown one that a server then refuses is shown until it can't land any more; and whatever
was refused (402, 403, another 4xx) is shown for ``COOL`` seconds more, or until the third refusal, since SDKs try three
times: their retries meet the same payment, never a new one.

Cap and row are one transaction, guarded in the statement that counts, so that threads and processes on one file
together never exceed a cap. ``synchronous=FULL``: a row that was written survives a power cut (J02). All calls block;
the asynchronous transport makes them in a worker thread.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading
import weakref
from collections.abc import Callable, Generator, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Final

from ..errors import ConfigError, PayerError, TooDear
from . import journal_calls, journal_lightning
from .journal_calls import BalanceCall, whole
from .journal_file import connect
from .journal_lightning import Invoice, Token

__all__ = ["Journal", "Payment"]

SHOWN_LATE: Final = 3 * 3600
"""Seconds after ``valid_before`` in which an unknown payment is still shown: longer than an SDK's retries can take
(three tries of four answers that each come after ten minutes), and than servers keep answers (C03)."""
COOL: Final = 150
"""Seconds after a refusal in which no new signature is made; SDKs wait no longer than 120 between two tries."""
REFUSALS: Final = 3
LEASE: Final = 900
"""Seconds after which a live process's use of a payment is not believed any more (its number may be another's)."""
KEEP: Final = 31 * 86400
"""Seconds for which closed rows are kept on disk."""
KEEP_IN_MEMORY: Final = 3600
PURGE_EVERY: Final = 256

_COOLING: Final = f"refusals BETWEEN 1 AND {REFUSALS - 1} AND ended_at > :now - {COOL}"
_FIND: Final = f"""
SELECT {{}}, owner, lease_until FROM payments
WHERE fingerprint = :fingerprint AND payer = :payer AND state IN ('signed', 'unknown', 'refused', 'used') AND (
    state <> 'used' AND valid_before >= :now
    OR (state = 'signed' OR state = 'unknown' AND refusals = 0) AND valid_before >= :now - {SHOWN_LATE}
    OR {_COOLING}
) ORDER BY rowid
"""
_OVER: Final = f"WHERE state = 'refused' AND valid_before < :now AND NOT ({_COOLING})"
_COUNT: Final = """
INSERT INTO spent VALUES (:payer, :period, :micros)
ON CONFLICT DO UPDATE SET micros = micros + excluded.micros WHERE :cap IS NULL OR micros + excluded.micros <= :cap
"""
_FINISH: Final = """
UPDATE payments SET state = :state, transaction_hash = :transaction, reason = :reason, ended_at = :now, owner = '',
lease_until = 0, refusals = CASE WHEN :refused THEN refusals + 1 WHEN :state = 'refused' THEN refusals ELSE 0 END,
value = CASE WHEN :closed THEN '' ELSE value END
WHERE reference = :reference AND (:state = 'accepted' OR state NOT IN ('accepted', 'given up', 'released'))
"""
"""What is closed stays so: two calls may have shown one payment, and the value of a closed one is gone."""
_REOPEN: Final = """
UPDATE payments SET state = 'signed', value = ?, owner = ?, lease_until = ?
WHERE reference = ? AND state IN ('accepted', 'signed', 'unknown') AND owner IN ('', ?)
"""
_UNCOUNT: Final = "UPDATE spent SET micros = max(0, micros - ?) WHERE payer = ? AND period = ?"

_RELEASE: Final = """
UPDATE payments SET state = 'released', value = '', reason = ?, ended_at = ?, owner = '', lease_until = 0
WHERE reference = ? AND state IN ('signed', 'unknown', 'refused')
"""

_owners: set[str] = set()
"""The journals that are open in this process."""
_inherited: list[sqlite3.Connection] = []
_reopening: Final = threading.Lock()


@dataclass(frozen=True, slots=True)
class Payment:
    """A row. ``amount`` in atomic units of ``asset``, ``micros`` in millionths of a dollar, times in Unix seconds."""

    reference: str
    fingerprint: bytes
    method: str
    url: str
    network: str
    asset: str
    pay_to: str
    payer: str
    amount: int
    micros: int
    created_at: int
    valid_before: int
    header: str = ""
    value: str = ""
    state: str = "signed"
    transaction: str = ""
    reason: str = ""


_COLUMNS: Final = ", ".join("transaction_hash" if f.name == "transaction" else f.name for f in fields(Payment))
_WIDTH: Final = len(fields(Payment))


class Journal:
    """Opens or makes the file (mode 0600: it holds signed payments); ``None`` keeps it in memory.

    Raises ``ConfigError`` for a file that is no journal of ours; its methods raise ``PayerError`` when it can't be
    written, and then nothing was signed.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path = None if path is None else Path(path).expanduser()
        self._writes = 0
        self._open()

    def _open(self) -> None:
        try:
            db = connect(self._path)
        except (OSError, sqlite3.Error) as e:
            raise ConfigError(f"the journal {self._path} can't be opened: {e}") from e
        self._lock = threading.Lock()
        self._owner = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._live: weakref.WeakValueDictionary[str, object] = weakref.WeakValueDictionary()
        _owners.add(self._owner)
        self._db = db
        self.close = weakref.finalize(self, _close, self._db, self._owner, self._lock)
        self._pid = os.getpid()  # last: by it other threads know that all of it is this process's

    def _reopen(self) -> None:
        """Forked: the parent's connection must be neither used nor closed here."""
        with _reopening:
            if self._pid != os.getpid():
                _inherited.append(self._db)
                self.close.detach()
                self._open()

    @contextlib.contextmanager
    def _locked(self) -> Generator[sqlite3.Connection]:
        if self._pid != os.getpid() and self._path is not None:
            self._reopen()
        try:
            with self._lock:
                yield self._db
        except sqlite3.Error as e:
            raise PayerError(f"the payment journal can't be used: {e}") from e

    @contextlib.contextmanager
    def _writing(self) -> Generator[sqlite3.Connection]:
        with self._locked() as db:
            try:
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # Ctrl-C comes behind a BEGIN that had to wait, too, and a COMMIT may fail
                    db.execute("ROLLBACK")
                raise

    def take(self, fingerprint: bytes, payer: str, now: int, holder: object) -> Payment | None:
        """The open payment for a request, leased to ``holder`` while that lives; None where it is in use."""
        with self._locked() as db:
            key = {"fingerprint": fingerprint, "payer": payer, "now": now}
            rows = db.execute(_FIND.format(_COLUMNS), key).fetchall()
            for row in rows:
                found, owner, lease_until = Payment(*row[:_WIDTH]), str(row[_WIDTH]), int(row[_WIDTH + 1])
                if not self._in_use(found.reference, owner, lease_until, now) and self._lease(db, found, owner, now):
                    self._live[found.reference] = holder
                    return found
        return None

    def _in_use(self, reference: str, owner: str, lease_until: int, now: int) -> bool:
        if owner == self._owner:
            return reference in self._live
        return bool(owner) and lease_until > now and _is_alive(owner)

    def _lease(self, db: sqlite3.Connection, found: Payment, owner: str, now: int) -> bool:
        changed = db.execute(
            "UPDATE payments SET state = 'signed', owner = ?, lease_until = ? WHERE reference = ? AND owner = ?",
            (self._owner, now + LEASE, found.reference, owner),
        ).rowcount
        return changed == 1

    def reserve(
        self,
        draft: Payment,
        caps: tuple[int | None, int | None],
        sign: Callable[[], tuple[str, str]],
        holder: object,
        wallets: Sequence[str] = (),
        invoice: Invoice | None = None,
    ) -> Payment | None:
        """Count the payment against the hour's and the day's cap, then sign it, and write it down: one transaction.

        ``wallets``: addresses of the same payer, whose payments count against the same caps. ``invoice``: what is paid
        on Lightning, whose payment has nothing to be shown yet. None where there is a row of that reference, which has
        not failed: an invoice or a challenge that another call pays. Raises ``TooDear`` when a cap would be exceeded.
        Then ``sign`` was not called.
        """
        with self._writing() as db:
            self._sweep(db, draft.created_at)
            if not journal_lightning.is_new(db, draft.reference):
                return None
            if invoice is not None:
                journal_lightning.add(db, invoice)
            for period, cap in zip(_periods(draft.created_at), caps, strict=True):
                _count(db, draft, period, cap, [each for each in wallets if each != draft.payer])
            header, value = sign()
            made = replace(draft, header=header, value=value)
            marks = ", ".join("?" * (_WIDTH + 2))
            row = (*astuple(made), self._owner, draft.created_at + LEASE)
            db.execute(f"INSERT INTO payments ({_COLUMNS}, owner, lease_until) VALUES ({marks})", row)
            self._live[made.reference] = holder
        return made

    def _sweep(self, db: sqlite3.Connection, now: int) -> None:
        """Give back what nobody has seen and can't land any more; forget what is old."""
        sql = f"SELECT micros, payer, created_at, refusals FROM payments {_OVER}"
        rows = db.execute(sql, {"now": now}).fetchall()
        for micros, payer, created_at, refusals in rows:
            for period in _periods(created_at) if refusals == 0 else ():
                db.execute(_UNCOUNT, (micros, payer, period))
        if rows:
            db.execute(f"UPDATE payments SET state = 'released', value = '' {_OVER}", {"now": now})
        self._purge(db, now)

    def _purge(self, db: sqlite3.Connection, now: int) -> None:
        if self._writes % PURGE_EVERY == 0:
            before = now - (KEEP_IN_MEMORY if self._path is None else KEEP)
            db.execute("DELETE FROM payments WHERE created_at < ? AND valid_before < ?", (before, now - SHOWN_LATE))
            journal_calls.purge(db, min(before, now - SHOWN_LATE))
            journal_lightning.purge(db, now)
        self._writes += 1

    def finish(
        self, reference: str, state: str, now: int, *, transaction: str = "", reason: str = "", refused: bool = False
    ) -> None:
        """The call that used the payment is over: end its lease, and write what became of it.

        ``refused`` counts as a refusal; the state ``refused`` without it is a payment that was not sent this time.
        """
        values = {"reference": reference, "state": state, "now": now, "transaction": whole(transaction)}
        values |= {"reason": whole(reason[:500]), "refused": refused, "closed": state in ("accepted", "given up")}
        with self._writing() as db:
            self._live.pop(reference, None)
            db.execute(_FINISH, values)

    def reopen(self, payment: Payment, now: int, holder: object) -> None:
        """Its call is not over, for which it was accepted, or is under way: ``holder`` uses it."""
        with self._writing() as db:
            row = (payment.value, self._owner, now + LEASE, payment.reference, self._owner)
            if db.execute(_REOPEN, row).rowcount:
                self._live[payment.reference] = holder

    def holds(self, reference: str, holder: object) -> bool:
        """Whether the row is in use by ``holder``."""
        return bool(reference) and self._live.get(reference) is holder

    def invoice(self, reference: str) -> Invoice | None:
        """What is paid, or was, under this payment hash."""
        with self._locked() as db:
            return journal_lightning.find(db, reference)

    def note_pending(self, reference: str) -> None:
        """The node has said that the payment is under way."""
        with self._writing() as db:
            journal_lightning.note_pending(db, reference)

    def paid(self, payment: Payment, value: str, micros: int, valid_before: int, token: Token | None = None) -> Payment:
        """An invoice was paid for ``micros``, fee and all: keep what is shown, and a ``token`` for more calls that it
        bought; what was counted more is given back.
        """
        made = replace(payment, value=value, micros=micros, valid_before=valid_before)
        with self._writing() as db:
            for period in _periods(payment.created_at):
                db.execute(_UNCOUNT, (payment.micros - micros, payment.payer, period))
            db.execute(
                "UPDATE payments SET value = ?, micros = ?, valid_before = ? WHERE reference = ?",
                (value, micros, valid_before, payment.reference),
            )
            if token is not None:
                journal_lightning.keep_token(db, token)
        return made

    def served(self, reference: str, now: int) -> None:
        """The token that a payment bought was taken: what the payment's own call came to is of no account then, unless
        it is still under way.
        """
        with self._writing() as db:
            lease = journal_lightning.lease(db, reference)
            if lease is not None and not self._in_use(reference, *lease, now):
                journal_lightning.served(db, reference)

    def release(self, payment: Payment, now: int, reason: str) -> None:
        """It is certain that no money moved, and none will: give the budget back at once."""
        with self._writing() as db:
            self._live.pop(payment.reference, None)
            changed = db.execute(_RELEASE, (whole(reason[:500]), now, payment.reference)).rowcount
            for period in _periods(payment.created_at) if changed else ():
                db.execute(_UNCOUNT, (payment.micros, payment.payer, period))

    def keep_token(self, token: Token) -> None:
        """For the next calls at its place."""
        with self._writing() as db:
            journal_lightning.keep_token(db, token)

    def token(self, places: tuple[str, str], now: int) -> Token | None:
        """What was bought before and is good at one of the places."""
        with self._locked() as db:
            return next(iter(journal_lightning.tokens(db, places, now)), None)

    def drop_token(self, token: Token) -> None:
        """It is good no more."""
        with self._writing() as db:
            journal_lightning.drop_token(db, token)

    def begin_call(self, draft: BalanceCall, holder: object) -> BalanceCall:
        """The open call from the balance for the same request, leased to ``holder``, or ``draft`` as a new row."""
        now = draft.created_at
        with self._writing() as db:
            self._purge(db, now)
            begun = journal_calls.begin(db, draft, self._owner, now + LEASE, self._in_use)
            self._live[begun.reference] = holder
        return begun

    def has_open_call(self, fingerprint: bytes, payer: str, now: int) -> bool:
        """Whether a call from the balance is open for this request."""
        with self._locked() as db:
            return journal_calls.find(db, fingerprint, payer, now, self._in_use) is not None

    def end_call(self, reference: str, state: str, now: int, *, charged: int | None = None, reason: str = "") -> None:
        """The call is over: end its lease, and write what became of it."""
        with self._writing() as db:
            self._live.pop(reference, None)
            journal_calls.end(db, reference, state, now, charged, reason)

    def reopen_call(self, reference: str) -> None:
        """Nobody has got its answer."""
        with self._writing() as db:
            journal_calls.reopen(db, reference)

    def calls(self, *, only_open: bool = False) -> list[BalanceCall]:
        """The calls from the balance, oldest first."""
        with self._locked() as db:
            return journal_calls.calls(db, only_open=only_open)

    def payments(self, *, only_open: bool = False) -> list[Payment]:
        """The rows, oldest first; ``only_open``: those that are not closed."""
        where = "WHERE state IN ('signed', 'unknown', 'refused')" if only_open else ""
        with self._locked() as db:
            rows = db.execute(f"SELECT {_COLUMNS} FROM payments {where} ORDER BY rowid").fetchall()
        return [Payment(*row) for row in rows]

    def spent(self, payer: str, now: int) -> tuple[int, int]:
        """Millionths of a dollar counted in this UTC hour and this UTC day, open payments included."""
        with self._locked() as db:
            hour, day = (_spent(db, payer, period) for period in _periods(now))
        return hour, day


def _periods(now: int) -> tuple[str, str]:
    return f"hour {now // 3600}", f"day {now // 86400}"


def _spent(db: sqlite3.Connection, payer: str, period: str) -> int:
    row = db.execute("SELECT micros FROM spent WHERE payer = ? AND period = ?", (payer, period)).fetchone()
    return int(row[0]) if row else 0


def _count(db: sqlite3.Connection, draft: Payment, period: str, cap: int | None, others: Sequence[str]) -> None:
    if cap is not None:
        cap -= sum(_spent(db, other, period) for other in others)
    values = {"payer": draft.payer, "period": period, "micros": draft.micros, "cap": cap}
    fits = cap is None or draft.micros <= cap
    if not fits or db.execute(_COUNT, values).rowcount == 0:
        name = "Limits.per_" + period.partition(" ")[0]
        raise TooDear(f"the payment would exceed {name}; nothing was signed")


def _is_alive(owner: str) -> bool:
    """Whether the process that holds a lease still runs; where that can't be asked, no: sharing loses no money."""
    pid = int(owner.partition("-")[0])
    if pid == os.getpid():
        return owner in _owners
    if os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _close(db: sqlite3.Connection, owner: str, lock: threading.Lock) -> None:
    _owners.discard(owner)
    # A call that was cancelled may leave a thread behind that still writes, and a connection that is closed under a
    # thread takes the process with it.
    with lock:
        db.close()
