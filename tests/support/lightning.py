"""Lightning in tests: two real nodes for each test process, started when the first test asks for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from x402kit.devnet import LightningDevnet

__all__ = ["lightning"]


@pytest.fixture(scope="session")
def lightning() -> Iterator[LightningDevnet]:
    """The seller's node and the payer's. What a test does to them stays: pay small, and pause only for yourself."""
    with LightningDevnet() as nodes:
        yield nodes
