"""Fixtures that all tests may use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.postgres import PostgresServer
from tests.support.stores import place as place
from x402kit.devnet import EvmDevnet


@pytest.fixture(scope="session")
def devnet() -> Iterator[EvmDevnet]:
    """One chain for each test process. What a test does to it stays: use ``chain`` unless you only read."""
    with EvmDevnet() as chain:
        yield chain


@pytest.fixture
def chain(devnet: EvmDevnet) -> Iterator[EvmDevnet]:
    """The chain, and after the test it is again as it was before: state, blocks, clock, mining, mempool."""
    before = devnet.snapshot()
    yield devnet
    devnet.rpc("evm_setIntervalMining", 0)
    devnet.set_automine(True)
    devnet.rpc("anvil_dropAllTransactions")
    devnet.revert(before)


@pytest.fixture
def own_chain() -> Iterator[EvmDevnet]:
    """A chain for one test alone: for reorganisations and fee spikes, which no snapshot takes back."""
    with EvmDevnet() as chain:
        yield chain


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL for each test process."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def database(postgres: PostgresServer) -> str:
    """A fresh PostgreSQL database, as the address of it."""
    return postgres.create()
