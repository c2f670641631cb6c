"""Trouble that a task expects and goes on after: told once when it begins and once when it is over."""

from __future__ import annotations

import contextlib
import logging

__all__ = ["Trouble"]


class Trouble:
    """One task's. No log that fails ends the task (I11)."""

    def __init__(self, log: logging.Logger, what: str) -> None:
        self._log = log
        self._what = what
        self._on = False

    def begins(self, why: str) -> None:
        """It can't do its work now; ``why`` is a published reason, never what an upstream said."""
        if not self._on:
            self._tell(f"{self._what} can't be done now: {why}; it is tried again")
        self._on = True

    def over(self) -> None:
        """It did its work."""
        if self._on:
            self._tell(f"{self._what} is done again")
        self._on = False

    def _tell(self, text: str) -> None:
        with contextlib.suppress(Exception):  # the background border
            self._log.warning("%s", text)
