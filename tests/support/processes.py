"""Processes of the tests: forked from one that has imported everything and has no thread, so each is up in a moment."""

from __future__ import annotations

import multiprocessing
from typing import Final

__all__ = ["FORKED"]

FORKED: Final = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [f"tests.support.{name}" for name in ("ledger_load", "lightning_processes", "shop_server")]
)
