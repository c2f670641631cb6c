"""What the package shows, and what importing it must not do."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import x402kit
from x402kit import errors, protocols

NAMES = [
    *(
        "Asset",
        "Call",
        "Metered",
        "Models",
        "PaidCall",
        "Pass",
        "Paywall",
        "PerImage",
        "PerRequest",
        "PerSecond",
        "Quote",
    ),
    *("Tokens", "Usage", "Usd", "usd"),
]
CHAIN_PACKAGES = ["web3", "eth_account", "coincurve", "aiohttp", "solana", "solders", "sha3", "fastapi", "httpx2"]
PURE = [
    *(f"x402kit.protocols.{module.name}" for module in pkgutil.iter_modules(protocols.__path__)),
    "x402kit.ledger.rules",
    "x402kit.paywall.flow",
    "x402kit.paywall.links",
    "x402kit.networks.evm",
    "x402kit.money",
    "x402kit.model",
]


def run(program: str) -> str:
    """In a fresh interpreter."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_public_names_are_these() -> None:
    assert sorted(x402kit.__all__) == NAMES
    assert {name for name in NAMES if not hasattr(x402kit, name)} == set()


def test_every_error_is_in_the_tree_and_named() -> None:
    made = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)}
    assert {error.__name__ for error in made} == set(errors.__all__)
    assert all(issubclass(error, errors.X402KitError) for error in made)
    assert errors.__doc__ is not None
    assert [error.__name__ for error in made if error.__name__ not in errors.__doc__] == []


def test_the_status_of_every_answer_is_in_the_contract() -> None:
    served = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.ServerError)]
    for error in served:
        assert error.status in (400, 401, 402, 403, 408, 409, 413, 429, 431, 500, 503, 504)
        unknown = error.status in (409, 504) and error is not errors.IdempotencyMismatch
        assert (error.money == "unknown") == unknown
    assert all(issubclass(e, errors.PaymentRefused) for e in served if e.status == 402)
    assert errors.PaymentRefused.money == "no"


def test_importing_loads_no_chain_package() -> None:
    program = f"import sys, x402kit; print([n for n in {CHAIN_PACKAGES!r} if n in sys.modules])"
    assert run(program) == "[]"


@pytest.mark.parametrize("module", ["x402kit.networks", "x402kit.client"])
def test_the_other_doors_load_no_chain_package(module: str) -> None:
    program = f"import sys, {module}; print([n for n in {CHAIN_PACKAGES!r} if n in sys.modules])"
    assert run(program) == "[]"


def test_what_does_no_io_is_imported_with_sockets_and_files_forbidden() -> None:
    program = f"""
import importlib, socket, sys
import asyncio, httpx, pydantic, starlette.applications, cryptography.hazmat.primitives.kdf.hkdf
import x402kit.errors
def watch(event, args):
    if event.startswith(("socket.", "sqlite3.", "subprocess.", "os.system")):
        raise RuntimeError(event)
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        raise RuntimeError("writes " + str(args[0]))
sys.dont_write_bytecode = True
sys.addaudithook(watch)
for name in {PURE!r}:
    importlib.import_module(name)
try:
    socket.socket()
except RuntimeError as e:
    print(e)
"""
    assert run(program) == "socket.__new__"


def test_a_paywall_is_made_without_any_io() -> None:
    program = """
import sys, x402kit
from x402kit.networks import Base
def watch(event, args):
    if event.startswith(("socket.", "sqlite3.")):
        raise RuntimeError(event)
sys.addaudithook(watch)
x402kit.Paywall([Base(pay_to="0x" + "11" * 20, facilitator="https://facilitator.example")], "/nowhere/at/all.db")
print("made")
"""
    assert run(program) == "made"
