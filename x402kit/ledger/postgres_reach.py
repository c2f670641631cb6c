"""Reach a PostgreSQL, and say in words of our own why it can't be: never the address, which holds a password (I11).

libpq hands out no SQLSTATE of a connection that never came about, only a text: its beginning decides then.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final, NamedTuple, Self

import psycopg
from psycopg.rows import TupleRow

from ..errors import ConfigError, LedgerUnreachable

__all__ = ["POOL", "Connection", "Fault", "Reached", "fault_of", "pool_options", "reach"]

log = logging.getLogger("x402kit.ledger")

POOL: Final = "x402kit-ledger"
"""The name of our pools."""
_AGAIN: Final = 0.25
"""Seconds between two tries at the start."""


class Fault(NamedTuple):
    """Why a connection did not come about; ``wrong`` where another try would fail as well."""

    said: str
    wrong: bool = False


_NO_DATABASE: Final = Fault("there is no such database", wrong=True)
_NO_ROLE: Final = Fault("there is no such role, or it may not log in", wrong=True)
_PASSWORD: Final = Fault("the password is wrong, or there is none", wrong=True)
_NOT_LET_IN: Final = Fault("its pg_hba.conf does not let us in", wrong=True)
_NOT_ALLOWED: Final = Fault("the role may not connect, or not do this", wrong=True)
_TLS: Final = Fault("server and address don't agree on TLS", wrong=True)
_STARTING: Final = Fault("it is starting or stopping")
_FULL: Final = Fault("it has no connection left")
_NO_NAME: Final = Fault("its host's name is not found")
_NO_HOST: Final = Fault("its host's name can't be one", wrong=True)
_NO_PORT: Final = Fault("its port can't be one", wrong=True)
_NOBODY: Final = Fault("nobody listens there")
_SILENT: Final = Fault("no answer came in time")
_OTHER: Final = Fault("the connection does not come about")

_BY_STATE: Final = {
    "3D000": _NO_DATABASE,
    "28000": _NO_ROLE,
    "28P01": _PASSWORD,
    "42501": _NOT_ALLOWED,
    "57P01": _STARTING,
    "57P02": _STARTING,
    "57P03": _STARTING,
    "53300": _FULL,
}
# What a server said goes before what the network did: with several hosts, or two addresses of one, both are in a text.
_BY_TEXT: Final = (
    ("no pg_hba.conf entry", _NOT_LET_IN),
    ("pg_hba.conf rejects", _NOT_LET_IN),
    ("password authentication failed", _PASSWORD),
    ("no password supplied", _PASSWORD),
    ("permission denied for database", _NOT_ALLOWED),
    ("is not permitted to log in", _NO_ROLE),
    ('FATAL:  role "', _NO_ROLE),
    ('FATAL:  database "', _NO_DATABASE),
    ("the database system is", _STARTING),
    ("too many clients", _FULL),
    ("too many connections", _FULL),
    ("remaining connection slots", _FULL),
    ("but SSL was required", _TLS),
    ("certificate verify failed", _TLS),
    ("invalid integer value", _NO_PORT),
    ("invalid port number", _NO_PORT),
    ("port numbers to", _NO_PORT),
    ("failed to resolve host", _NO_NAME),
    ("could not translate host name", _NO_NAME),
    ("Connection refused", _NOBODY),
    ("No such file or directory", _NOBODY),
    ("timeout expired", _SILENT),
    ("timed out", _SILENT),
)


def fault_of(error: psycopg.Error) -> Fault:
    """The cause, by SQLSTATE where there is one."""
    if error.sqlstate is not None:
        return _BY_STATE.get(error.sqlstate, _OTHER)
    if isinstance(error, psycopg.errors.ConnectionTimeout):
        return _SILENT
    text = str(error)
    return next((fault for part, fault in _BY_TEXT if part in text), _OTHER)


class Reached:
    """Whether something worked last time: a change is told once."""

    def __init__(self, lost: str, again: str) -> None:
        self._lost, self._again = lost, again
        self._away = False

    def failed(self, error: psycopg.Error) -> None:
        if not self._away:
            log.warning("%s: %s; it is tried again", self._lost, fault_of(error).said)
        self._away = True

    def came(self) -> None:
        if self._away:
            log.warning("%s", self._again)
        self._away = False


class Connection(psycopg.AsyncConnection[TupleRow]):
    """A pool's connection: ``reached``, one for each pool, is told how each try went."""

    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Self:
        reached: Reached = kwargs.pop("reached")
        try:
            made = await super().connect(conninfo, **kwargs)
        except psycopg.Error as e:
            reached.failed(e)
            raise
        reached.came()
        return made


def pool_options(conninfo: dict[str, Any]) -> dict[str, Any]:
    """The arguments by which a pool makes its connections, and tells of trouble in our words and not in its own."""
    logging.getLogger("psycopg.pool").addFilter(_ours)  # the same one: it is there once
    reached = Reached("the ledger's database can't be reached", "the ledger's database is reached again")
    return {
        "kwargs": {**conninfo, "autocommit": True, "reached": reached},
        "connection_class": Connection,
        "name": POOL,
    }


def _ours(record: logging.LogRecord) -> bool:
    """Not for each try a line of the pool's with what the network said: ``Reached`` tells it once."""
    about = record.args[0] if isinstance(record.args, tuple) and record.args else None
    return record.levelno != logging.WARNING or not (about == POOL or isinstance(about, Connection))


async def reach(conninfo: dict[str, Any], seconds: float) -> None:
    """Connect once, and try for so long. Raises ``LedgerUnreachable``, or ``ConfigError`` where it would be in vain."""
    end = time.monotonic() + seconds
    while True:
        fault = _SILENT
        try:
            async with asyncio.timeout(max(end - time.monotonic(), 0.01)):
                connection = await psycopg.AsyncConnection.connect(**conninfo)
            await connection.close()
            return
        except psycopg.Error as e:
            fault = fault_of(e)
        except UnicodeError:  # from looking its host up
            fault = _NO_HOST
        except TimeoutError:
            pass
        if fault.wrong:
            raise ConfigError(f"the ledger's database can't be opened: {fault.said}") from None
        if time.monotonic() + _AGAIN >= end:
            raise LedgerUnreachable(f"the ledger's database can't be reached: {fault.said}")
        await asyncio.sleep(_AGAIN)
