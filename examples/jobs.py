"""Image jobs: a paid request starts one, its payment waits for the end, its id is all that is needed to ask for it.

A job stands in a file before its answer goes out. Whatever dies meanwhile: who starts next draws what is left, and ends
the payment with the same cost, which the ledger books once.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from x402kit import Paywall, Usd, usd
from x402kit.errors import HoldEnded, ServerError
from x402kit.money import format_units

from .stand_in import draw

__all__ = ["Jobs", "name_of"]

log = logging.getLogger(__name__)

_SECONDS: Final = 1.0
"""How long the stand-in's queue takes for a job."""
_KEPT_SECONDS: Final = 72 * 3600
_LOOK_SECONDS: Final = 0.2
_UNPAID_SECONDS: Final = 60
_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS image_jobs (id TEXT PRIMARY KEY, hold TEXT NOT NULL UNIQUE, prompts TEXT NOT NULL,"
    " price TEXT NOT NULL, created REAL NOT NULL, state TEXT NOT NULL, bill TEXT)"
)


_PREFIX: Final = "gen_"
_NAME: Final = 12


def name_of(job: str) -> str:
    """What a job is called in signed links. It may be known: it is its own, but nobody has the id from it."""
    return job.removeprefix(_PREFIX)[:_NAME]


class _Job(NamedTuple):
    """A row. ``hold`` is what the paywall knows it by, ``price`` that of one image when it was asked for."""

    id: str
    hold: str
    prompts: str
    price: str
    created: float
    state: str
    bill: str | None

    def images(self) -> list[dict[str, Any]]:
        return [_image(prompt) for prompt in json.loads(self.prompts)]


def _image(prompt: str) -> dict[str, Any]:
    try:
        return {"type": "image", "status": "succeeded", "format": "svg", "prompt": prompt, "svg": draw(prompt)}
    except ValueError as e:
        return {"type": "image", "status": "failed", "prompt": prompt, "error": str(e)}


class Jobs:
    """A table of jobs that all workers of a machine see. ``run`` ends what is due."""

    def __init__(self, ledger: str) -> None:
        self._db = sqlite3.connect(_place(ledger), isolation_level=None, check_same_thread=False, timeout=10)
        self._db.execute(_TABLE)
        self.busy = threading.Lock()
        """Held by a thread that uses the file, which the loop may have left when it is closed."""

    def close(self) -> None:
        """Let go of the file. What is queued is ended by whoever opens it next."""
        with self.busy:  # a connection that is closed under a thread takes the process with it
            self._db.close()

    def start(self, hold: str, prompts: list[str], price: Usd) -> dict[str, Any]:
        """Queue a job; the same one for the same ``hold``. Its id can't be guessed: who knows it may have the images.

        The answer leaves when the payment is written down as waiting for this job.
        """
        now = time.time()
        self._db.execute("DELETE FROM image_jobs WHERE created < ?", (now - _KEPT_SECONDS,))
        new = _Job(_PREFIX + secrets.token_urlsafe(24), hold, json.dumps(prompts), str(price), now, "queued", None)
        self._db.execute("INSERT INTO image_jobs VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (hold) DO NOTHING", new)
        (job,) = self._db.execute("SELECT id FROM image_jobs WHERE hold = ?", (hold,)).fetchone()
        return {"request_id": job, "status": "queued", "poll_after_seconds": _SECONDS}

    def look(self, job: str) -> dict[str, Any] | None:
        """A job's state; when it has ended its images and what they cost. None for an unknown one."""
        row = self._db.execute("SELECT * FROM image_jobs WHERE id = ?", (job,)).fetchone()
        if row is None:
            return None
        found = _Job(*row)
        told: dict[str, Any] = {"request_id": job, "status": found.state}
        if found.bill is None:
            return {**told, "poll_after_seconds": _SECONDS}
        return {
            **told,
            "results": found.images() if found.state != "expired" else [],
            "billing": json.loads(found.bill),
        }

    def named(self, name: str) -> dict[str, Any] | None:
        """The same by the job's name, for links: without the id, from which more could be had than a link gives."""
        # A name is the beginning of an id, and ids have none of the characters from "~" on.
        sql = "SELECT id FROM image_jobs WHERE id > ? AND id < ?"
        row = self._db.execute(sql, (_PREFIX + name, f"{_PREFIX}{name}~")).fetchone() if len(name) == _NAME else None
        told = self.look(row[0]) if row is not None else None
        return told and {key: value for key, value in told.items() if key != "request_id"}

    async def run(self, paywall: Paywall) -> None:
        """End the jobs that are due, for ever. Several processes may: a job's end is always the same."""
        while True:
            await asyncio.gather(*[self._end(paywall, job) for job in await asyncio.to_thread(self._due)])
            await asyncio.sleep(_LOOK_SECONDS)

    def _due(self) -> list[_Job]:
        sql = "SELECT * FROM image_jobs WHERE state = 'queued' AND created < ?"
        return [_Job(*row) for row in self._do(sql, time.time() - _SECONDS)]

    def _do(self, sql: str, *values: object) -> list[Any]:
        with self.busy:
            return self._db.execute(sql, values).fetchall()

    async def _end(self, paywall: Paywall, job: _Job) -> None:
        """Charge for the images that were drawn, give the rest back; nothing is shown before that is written down."""
        drawn = sum(image["status"] == "succeeded" for image in job.images())
        state = "succeeded" if drawn else "failed"
        try:
            entry = await (paywall.finish(job.hold, drawn * usd(job.price)) if drawn else paywall.void(job.hold))
        except ServerError:  # the ledger is out of reach; the job waits
            log.exception("the job %s could not be ended yet", job.id)
            return
        except HoldEnded as e:
            if e.reason == "no_such_hold":
                await asyncio.to_thread(self._forget, job)
                return
            bill, state = {"charged_usdc": "0.000000"}, "expired"
        else:
            # Over Lightning an account counts in millisatoshi.
            unit, decimals = ("btc", 11) if entry.asset.endswith("/btc") else ("usdc", 6)
            moved = {"reserved": -entry.held, "charged": entry.revenue, "refunded": entry.available}
            bill = {f"{what}_{unit}": format_units(amount, decimals) for what, amount in moved.items()}
        sql = "UPDATE image_jobs SET state = ?, bill = ? WHERE id = ? AND state = 'queued'"
        await asyncio.to_thread(self._do, sql, state, json.dumps(bill), job.id)

    def _forget(self, job: _Job) -> None:
        """A job whose answer did not go out, and after a while never will. Its payment, shown again, starts another."""
        if time.time() > job.created + _UNPAID_SECONDS:
            self._do("DELETE FROM image_jobs WHERE id = ?", job.id)


def _place(ledger: str) -> str | Path:
    """Beside the ledger's file; for one in a database, a file here by that database's name in disguise."""
    if ledger == ":memory:":
        return ledger
    if "://" in ledger:
        return f"inference-{hashlib.sha256(ledger.encode()).hexdigest()[:12]}.jobs.db"
    return Path(ledger).with_suffix(".jobs.db")
