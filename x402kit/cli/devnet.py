"""``x402kit devnet``: local chains with funded accounts, until stopped."""

from __future__ import annotations

import argparse
import signal
import time
from types import FrameType, TracebackType
from typing import Any

from ..devnet import EvmDevnet
from ..money import format_units
from .output import bold, dim, error, wants_json, write_json
from .status import ERROR, OK

__all__ = ["Stoppable", "add", "run"]

_DESCRIPTION = """Start local chains on free loopback ports, with Circle's USDC contract and funded accounts.

In a pipe or with --json it prints one line when ready:
  {"evm": {"rpc_url", "chain_id", "usdc", "accounts": [{"address", "private_key"}]}}
Account 0 is the seller's settlement wallet, account 1 a payer with 1 000 USDC. The keys are public and worth nothing.
Runs until Ctrl-C or SIGTERM, and leaves nothing behind.
"""


class _Stopped(BaseException):
    """A signal asked us to end. No ``Exception``: nothing may swallow it."""


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "devnet",
        help="start local chains with funded accounts",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="one JSON line, on a terminal too")
    parser.set_defaults(run=run)


class Stoppable:
    """A block that SIGINT, SIGTERM and SIGHUP (not under nohup) end in good order, at whatever point."""

    def __enter__(self) -> None:
        hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
        self._before = {each: signal.signal(each, self._stop) for each in (signal.SIGINT, signal.SIGTERM, *hangup)}

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> bool:
        for each, handler in self._before.items():
            signal.signal(each, handler)
        return kind is _Stopped

    def _stop(self, number: int, frame: FrameType | None) -> None:
        for each in self._before:
            signal.signal(each, signal.SIG_IGN)  # a second one must not interrupt the clearing up
        raise _Stopped


def run(arguments: argparse.Namespace) -> int:
    """Run the chains until a signal comes. Status 1 when one of them ended by itself."""
    with Stoppable(), EvmDevnet() as evm:
        if wants_json(arguments.json):
            write_json(evm.describe())
        else:
            _show(evm)
        while evm.running:
            time.sleep(0.5)
        error("the EVM chain ended")
        return ERROR
    return OK


def _show(evm: EvmDevnet) -> None:
    print(f"{bold('EVM')}  {evm.rpc_url}  chain {evm.chain_id} (eip155:{evm.chain_id})")
    print(f"     USDC {evm.usdc}\n")
    roles = {0: "settlement", 1: "payer"}
    for index, account in enumerate(evm.accounts):
        balance = format_units(evm.balance_of(account.address), 6)
        print(f"  {index} {roles.get(index, ''):<10} {account.address} {balance:>12} USDC")
        print(f"               {dim(account.private_key)}")
    seller, payer = evm.accounts[:2]
    print("\nFor a seller:")
    print(f"  export X402KIT_ENV=devnet X402KIT_EVM_RPC_URL={evm.rpc_url}")
    print(f"  export X402KIT_EVM_PAY_TO={seller.address}")
    print(f"  export X402KIT_EVM_KEY={seller.private_key}")
    print("For a payer, in another shell:")
    print(f"  export X402KIT_EVM_KEY={payer.private_key}")
    print(f"\n{dim('The keys are public and worth nothing. Ctrl-C stops the chain.')}", flush=True)
