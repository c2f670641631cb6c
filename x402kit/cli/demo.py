"""``x402kit demo``: a seller, a payer and a chain on this machine, and money that really moves between them."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Generator
from typing import Any, Final, NamedTuple

import httpx

from ..client import Payer, PayerError, PrepaidWallet, Transaction
from ..client.balance import Balance
from ..devnet.errors import DevnetError, ToolMissing
from ..money import format_units
from .demo_calls import Calls
from .demo_lightning import LightningDemo
from .demo_money import ByPayment, FromBalance, money, show_asked
from .demo_rails import DemoRail, EvmDemo
from .demo_server import serve
from .demo_svm import SvmDemo
from .devnet import Stoppable
from .output import bold, dim, error, green, plain, red
from .status import ERROR, INTERRUPTED, OK

__all__ = ["add", "run"]

_DESCRIPTION = """Start local chains, a seller (examples/inference.py under uvicorn) and a payer, and on each rail:
pay for a fixed price, for a chat completion and for a streamed one; top a balance up; make the same calls from it, by
proofs of the wallet; show what moved on chain, and the account's statement. Stop everything.

Nothing leaves this machine. Status 0 when every balance adds up to the atomic unit, else 1.
"""
_PER_CALL: Final = "$0.05"
_PER_DAY: Final = "$1"
_TOP_UP: Final = "0.10"

RAILS: tuple[Callable[[], DemoRail], ...] = (EvmDemo, SvmDemo, LightningDemo)
"""Each rail that exists is paid on by the demo."""


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "demo",
        help="a seller, a payer and a chain on this machine",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show it; status 1 when something did not add up."""
    with Stoppable() as stop:
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            rails = _started(stack)
            stop.check()
            seller = stack.enter_context(serve(rails))
            print(f"{bold('seller')}   {seller.url}, examples/inference.py")
            rounds = [_Round(rail, seller.url, stop).run() for rail in rails]
            good = all(rounds)
            if not good:
                error(f"the seller's log:\n{seller.log()}")
        stop.check()
        print(dim(f"\nEverything is stopped again. {time.monotonic() - started:.1f} s."))
        return OK if good else ERROR
    return INTERRUPTED


def _started(stack: contextlib.ExitStack) -> list[DemoRail]:
    """The rails, each with its chain; one whose chain is not built for this machine is left out, unless it is all."""
    rails: list[DemoRail] = []
    for make in RAILS:
        try:
            rails.append(stack.enter_context(make()))
        except ToolMissing as e:
            if not rails:
                raise
            print(dim(f"left out: {e}"))
    return rails


class _Books(NamedTuple):
    """What the payer knows at the end, in atomic units."""

    payments: ByPayment
    charged: int
    balance: int
    statement: list[Transaction] | None
    """None on a rail that keeps no account of its payer."""


class _Round:
    """The same calls on one rail, paid one by one and from a balance, and the sums afterwards."""

    def __init__(self, rail: DemoRail, url: str, stop: Stoppable) -> None:
        self._rail = rail
        self._stop = stop
        self._asset = rail.asset
        self._url = url

    def run(self) -> bool:
        """Whether everything was answered, and the money adds up."""
        rail = self._rail
        print(f"\n{bold('chain')}    {rail.about}")
        print(f"{bold('payer')}    {rail.payer}, at most {_PER_CALL} a call and {_PER_DAY} a day")
        before = self._balances("before")
        try:
            books = self._calls()
        except (httpx.HTTPError, DevnetError, PayerError, ValueError) as e:
            error(f"{type(e).__name__}: {e}")
            return False
        return self._sums(books, before, self._balances("after"))

    def _calls(self) -> _Books:
        payments, calls = ByPayment(self._rail), Calls(self._stop.check)
        with self._client("off") as (calls.client, _):
            calls.weather(payments, "a fixed price")
            calls.chat(payments, "by tokens: paid is the most that it can cost")
            calls.streamed_chat(payments, "the same, streamed")
        if not self._rail.proves:  # what calls left over stays under their payment hashes
            return _Books(payments, payments.charged, payments.left, None)
        with self._client("only") as (calls.client, payer):
            wallet = payer.wallet(f"{self._url}/v1/x402", calls.client)
            balance = self._top_up(calls, wallet, payments)
            proofs = FromBalance(self._asset, balance)
            calls.weather(proofs, "from the balance: no transaction, no gas")
            calls.chat(proofs, "from the balance")
            calls.streamed_chat(proofs, "from the balance, streamed")
            self._stop.check()
            left = wallet.balance()
            statement = list(wallet.transactions())[::-1]
        self._show(statement)
        return _Books(payments, payments.charged + proofs.charged, left.available + left.held, statement)

    @contextlib.contextmanager
    def _client(self, balance: Balance) -> Generator[tuple[httpx.Client, Payer]]:
        payer = self._rail.wallet(_PER_CALL, _PER_DAY, show_asked, balance)
        with contextlib.closing(payer), httpx.Client(transport=payer.transport(), base_url=self._url) as client:
            yield client, payer

    def _top_up(self, calls: Calls, wallet: PrepaidWallet, payments: ByPayment) -> int:
        calls.title("POST /v1/x402/top-up", "a balance, for who does not want to pay each call by itself")
        made = wallet.top_up(_TOP_UP)
        if made.problem or made.payment is None:
            raise ValueError(f"the top-up: {made.problem or 'not paid'}")
        payments.settled(made.payment)
        print(f"   credit {money(made.credited, self._asset)}, balance {money(made.balance, self._asset)}")
        return made.balance

    # What is shown of it

    def _show(self, statement: list[Transaction]) -> None:
        print(f"\n{bold('statement')} of {self._rail.payer} at the seller")
        print(dim(f"         {'':<9} {'amount':>10} {'balance':>10} {'charged':>10}"))
        decimals = self._asset.decimals
        for each in statement:
            numbers = [_number(amount, decimals) for amount in (each.amount, each.balance_after, each.charged)]
            what = plain(each.resource.rpartition(".")[2])
            print(f"         {each.type:<9} {' '.join(f'{number:>10}' for number in numbers)}  {dim(what)}")

    def _balances(self, when: str) -> tuple[int, int]:
        payer, seller = (self._rail.balance_of(address) for address in (self._rail.payer, self._rail.seller))
        print(f"\n{bold(f'{when:<6}')}   payer {money(payer, self._asset)}, seller {money(seller, self._asset)}")
        return payer, seller

    def _sums(self, books: _Books, before: tuple[int, int], after: tuple[int, int]) -> bool:
        """Receipts, transfers, both wallets on chain and the account's statement say the same, to the atomic unit."""
        paid = books.payments.paid
        chain = {
            "the receipts": sum(info.amount for info, _ in paid),
            "the transfers": sum(transfer.amount for _, transfer in paid),
            "the payer paid": before[0] - after[0],
            "the seller got": after[1] - before[1],
        }
        account = {"the calls cost": books.charged, "left as balance": books.balance}
        good = len({*chain.values(), sum(account.values())}) == 1 and _agrees(books)
        good = good and {(transfer.payer, transfer.pay_to) for _, transfer in paid} == {
            (self._rail.payer, self._rail.seller)
        }
        good = good and len({transfer.transaction for _, transfer in paid}) == len(paid)
        print(f"{bold('sum')}      of {len(paid)} transfers")
        for what, amount in (chain | account).items():
            print(f"         {what:<15} {money(amount, self._asset):>14}")
        print("         " + (green("It adds up.") if good else red("It does not add up.")))
        sys.stdout.flush()
        return good


def _agrees(books: _Books) -> bool:
    """Whether the statement's moves lead to the balance, and its charges are what the answers said."""
    if books.statement is None:
        return True
    balance = 0
    for each in books.statement:
        balance += each.amount
        if balance != each.balance_after:
            return False
    return balance == books.balance and sum(each.charged or 0 for each in books.statement) == books.charged


def _number(amount: int | None, decimals: int) -> str:
    return "" if amount is None else format_units(amount, decimals)
