"""``x402kit devnet``: local chains with funded accounts, until stopped."""

from __future__ import annotations

import argparse
import contextlib
import signal
import time
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Final, Self

from ..devnet import EvmDevnet, LightningDevnet, SvmDevnet, ToolMissing
from ..money import format_units
from .output import bold, dim, error, wants_json, write_json
from .status import ERROR, OK

__all__ = ["Stoppable", "add", "run"]

_DESCRIPTION = """Start local chains on free loopback ports, an EVM chain and a Solana, with USDC and funded accounts.

In a pipe or with --json it prints one line when ready:
  {"evm": {"rpc_url", "chain_id", "usdc", "accounts": [{"address", "private_key"}]},
   "svm": {"rpc_url", "network", "usdc", "accounts": [{"address", "secret_key"}]}}
Where the Solana runtime is not built for this machine, "svm" is missing. With --lightning two Lightning nodes are
added, with a channel between them and LND's REST API; the first is the seller's, the second the payer's:
   "lightning": {"network", "nodes": [{"url", "macaroon", "invoice_macaroon", "pubkey"}]}
Account 0 is the seller's settlement wallet, account 1 a payer with 1 000 USDC. The keys are public and worth nothing.
Runs until Ctrl-C or SIGTERM, and leaves nothing behind.
"""
_BTC_USD: Final = "100000"
"""What a bitcoin counts in the lines that are printed: any price does on this machine."""


_ORIGIN: Final = "http://127.0.0.1:8000"
"""Where uvicorn listens unless told otherwise: wallet proofs are good for the seller's origin only."""


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
    parser.add_argument(
        "--lightning", action="store_true", help="also two Lightning nodes, the seller's and the payer's"
    )
    parser.add_argument("--json", action="store_true", help="one JSON line, on a terminal too")
    parser.set_defaults(run=run)


class Stoppable:
    """A block that SIGINT, SIGTERM and SIGHUP (not under nohup) end in good order, at whatever point.

    Code of others may swallow what ends it (a bare ``except:`` around an import): ``check`` raises it again.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Self:
        hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
        self._before = {each: signal.signal(each, self._stop) for each in (signal.SIGINT, signal.SIGTERM, *hangup)}
        return self

    def check(self) -> None:
        """A point at which the block ends for certain, if it was asked to."""
        if self.asked:
            raise _Stopped

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> bool:
        for each, handler in self._before.items():
            signal.signal(each, handler)
        return kind is _Stopped

    def _stop(self, number: int, frame: FrameType | None) -> None:
        for each in self._before:
            signal.signal(each, signal.SIG_IGN)  # a second one must not interrupt the clearing up
        self.asked = True
        raise _Stopped


def run(arguments: argparse.Namespace) -> int:
    """Run the chains until a signal comes. Status 1 when one of them ended by itself."""
    with Stoppable() as stop, contextlib.ExitStack() as stack:
        evm = stack.enter_context(EvmDevnet())
        svm = _solana(stack)
        lightning = stack.enter_context(LightningDevnet()) if arguments.lightning else None
        if wants_json(arguments.json):
            found = (each.describe() for each in (evm, svm, lightning) if each is not None)
            write_json({name: said for described in found for name, said in described.items()})
        else:
            _show(evm, svm, lightning)
        running = {"EVM chain": evm, "Solana chain": svm, "pair of Lightning nodes": lightning}
        while not (ended := [name for name, each in running.items() if each is not None and not each.running]):
            stop.check()
            time.sleep(0.5)
        error(f"the {ended[0]} ended")
        return ERROR
    return OK


def _solana(stack: contextlib.ExitStack) -> SvmDevnet | None:
    try:
        return stack.enter_context(SvmDevnet())
    except ToolMissing as e:
        error(f"no Solana: {e}")
        return None


def _show(evm: EvmDevnet, svm: SvmDevnet | None, lightning: LightningDevnet | None) -> None:
    print(f"{bold('EVM')}  {evm.rpc_url}  chain {evm.chain_id} (eip155:{evm.chain_id})")
    _accounts(evm.usdc, [(each.address, each.private_key, evm.balance_of(each.address)) for each in evm.accounts])
    seller, payer = evm.accounts[:2]
    sells = [f"ENV=devnet X402KIT_ORIGIN={_ORIGIN}", f"EVM_RPC_URL={evm.rpc_url}"]
    sells += [f"EVM_PAY_TO={seller.address}", f"EVM_KEY={seller.private_key}"]
    pays = [f"EVM_KEY={payer.private_key}"]
    if svm is not None:
        print(f"\n{bold('Solana')}  {svm.rpc_url}  {svm.network}")
        _accounts(svm.usdc, [(each.address, each.secret_key, svm.balance_of(each.address)) for each in svm.accounts])
        sells += [f"SVM_RPC_URL={svm.rpc_url}", f"SVM_PAY_TO={svm.accounts[0].address}"]
        sells += [f"SVM_KEY={svm.accounts[0].secret_key}"]
        pays += [f"SVM_KEY={svm.accounts[1].secret_key}"]
    if lightning is not None:
        _nodes(lightning)
        sells += _variables(lightning.seller.url, lightning.seller.invoice_macaroon)
        pays += _variables(lightning.payer.url, lightning.payer.macaroon)
    for who, variables in (("For a seller:", sells), ("For a payer, in another shell:", pays)):
        print(f"\n{who}" if variables is sells else who)
        for each in variables:
            print(f"  export X402KIT_{each}")
    print(f"\n{dim('X402KIT_ORIGIN: as callers write the seller. A new chain needs a new ledger: rm -f payments.db*')}")
    print(f"{dim('The keys are public and worth nothing. Ctrl-C stops the chains.')}", flush=True)


def _variables(url: str, macaroon: str) -> list[str]:
    return [f"LIGHTNING_URL=lnd+{url} X402KIT_LIGHTNING_BTC_USD={_BTC_USD}", f"LIGHTNING_KEY={macaroon}"]


def _nodes(lightning: LightningDevnet) -> None:
    print(f"\n{bold('Lightning')}  {lightning.network} (regtest)")
    print("     LND's REST API; the header Grpc-Metadata-macaroon authorizes\n")
    for role, node in (("seller", lightning.seller), ("payer", lightning.payer)):
        print(f"  {role:<12} {node.url}  {node.pubkey}")
        print(f"               {dim(node.macaroon)} {dim('(all rights)')}")
        print(f"               {dim(node.invoice_macaroon)} {dim('(invoices only)')}")


def _accounts(usdc: str, accounts: Sequence[tuple[str, str, int]]) -> None:
    print(f"     USDC {usdc}\n")
    roles = {0: "settlement", 1: "payer"}
    for index, (address, key, balance) in enumerate(accounts):
        print(f"  {index} {roles.get(index, ''):<10} {address} {format_units(balance, 6):>12} USDC")
        print(f"               {dim(key)}")
