"""Jobs that a paid request starts and that are polled for. Written down before the payment's answer leaves."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from pathlib import Path
from typing import Any, Final

from .stand_in import draw

__all__ = ["Jobs"]

_SECONDS: Final = 1.0
"""How long the stand-in's queue takes for a job."""
_KEPT_SECONDS: Final = 72 * 3600


class Jobs:
    """A table of jobs beside the ledger, so that what was paid for outlives a restart and is seen by all workers."""

    def __init__(self, ledger: str) -> None:
        path = ledger if ledger == ":memory:" else Path(ledger).with_suffix(".jobs.db")
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        self._db.execute("CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, prompts TEXT, created REAL)")

    def start(self, prompts: list[str]) -> dict[str, Any]:
        """Queue a job. Its id can't be guessed: who knows it may fetch the result."""
        job, now = f"gen_{secrets.token_urlsafe(24)}", time.time()
        self._db.execute("DELETE FROM jobs WHERE created < ?", (now - _KEPT_SECONDS,))
        self._db.execute("INSERT INTO jobs VALUES (?, ?, ?)", (job, json.dumps(prompts), now))
        return {"request_id": job, "status": "queued", "poll_after_seconds": _SECONDS}

    def look(self, job: str) -> dict[str, Any] | None:
        """A job's state, and its images when they are done; None for an unknown one."""
        row = self._db.execute("SELECT prompts, created FROM jobs WHERE id = ?", (job,)).fetchone()
        if row is None:
            return None
        prompts, created = json.loads(row[0]), float(row[1])
        if time.time() < created + _SECONDS:
            return {"request_id": job, "status": "running", "poll_after_seconds": _SECONDS}
        images = [{"type": "image", "format": "svg", "prompt": p, "svg": draw(p)} for p in prompts]
        return {"request_id": job, "status": "succeeded", "results": images}
