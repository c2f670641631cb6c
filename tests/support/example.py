"""The example apps as their sellers run them: under uvicorn, in a process of its own, beside a local chain."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Mapping
from pathlib import Path

from tests.support.commands import environment
from tests.support.serving import free_port
from x402kit.devnet import EvmDevnet
from x402kit.devnet.process import Server

__all__ = ["ROOT", "seller_of", "served"]

ROOT = Path(__file__).parents[2]


def seller_of(chain: EvmDevnet, ledger: Path) -> dict[str, str]:
    """The environment of a seller on this chain."""
    return {
        "X402KIT_ENV": "devnet",
        "X402KIT_LEDGER": str(ledger),
        "X402KIT_EVM_RPC_URL": chain.rpc_url,
        "X402KIT_EVM_NETWORK": f"eip155:{chain.chain_id}",
        "X402KIT_EVM_PAY_TO": chain.accounts[0].address,
        "X402KIT_EVM_KEY": chain.accounts[0].private_key,
    }


@contextlib.contextmanager
def served(app: str, env: Mapping[str, str], *, cwd: Path | None = None) -> Generator[str]:
    """The URL of ``uvicorn app``, which knows it as its origin; it must end in good order after the block."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = (sys.executable, "-m", "uvicorn", app, "--app-dir", str(ROOT), "--port", str(port))
    env = environment({"X402KIT_ORIGIN": url, **env})
    server = Server(command, ready="Uvicorn running on", env=env, cwd=cwd)
    try:
        yield url
    finally:
        server.terminate(10)
        said = server.said()
        server.stop()
    assert "Traceback" not in said, said
    assert "Application shutdown complete" in said, said
