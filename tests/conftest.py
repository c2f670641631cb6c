"""Fixtures that all tests may use."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support.lightning import lightning as lightning
from tests.support.postgres import PostgresServer, close_shared, shared
from tests.support.stores import ledger as ledger
from tests.support.stores import place as place
from x402kit.devnet import EvmDevnet, SvmDevnet

# No example fails for the time that it, or the first of them in a fresh clone, took.
settings.register_profile("whole", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("whole")

# A shell that runs us in the background has us ignore it, and so would the commands that we interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture(scope="session", autouse=True)
def _servers() -> Iterator[None]:
    yield
    close_shared()


@pytest.fixture(scope="session")
def svm() -> Iterator[SvmDevnet]:
    """One Solana for each test process, with a block every 50 ms. What a test does to it stays."""
    with SvmDevnet(slot_ms=50) as chain:
        yield chain


@pytest.fixture(scope="session")
def postgres() -> PostgresServer:
    """One PostgreSQL for each test process."""
    return shared()


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[str]:
    """A fresh PostgreSQL database, as the address of it."""
    made = postgres.create()
    yield made
    postgres.drop(made)
