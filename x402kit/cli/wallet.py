"""``x402kit wallet``: a prepaid balance at a seller."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

import httpx

from ..client import Payer, PayerError, PolicyRefused, PrepaidWallet, TooDear, WalletServiceError
from ..model import Json
from ..money import format_units
from .keys import add_keys, dollars, journal_path, limits_of, read_wallets
from .outcome import failed, open_reference
from .output import plain, wants_json, write_json
from .report import amount_text, network_text
from .status import OK

__all__ = ["add", "run"]

_DESCRIPTION = """A prepaid balance at a seller: URL is its wallet service, such as https://api.example.com/v1/x402.

  info           what the service accepts
  top-up USD     pay so much onto the balance; the seller may add --gas for the settlement
  balance        what is there
  transactions   what moved, the newest first
  withdraw [USD] have so much, or all of it, back in the wallet

The wallet's private key is read from X402KIT_EVM_KEY, or from a file; for Solana from X402KIT_SVM_KEY, or a keypair's
file. When an answer is lost, the same command goes on with the same top-up or withdrawal. On a terminal the answer is
in words, else, or with --json, JSON, one object on a line; amounts are then in atomic units. The exit status is as for
x402kit pay.
"""
_COUNT: Final = 20
_NOT_FOUND: Final = 404
_NO_SUCH_PLACE: Final = "not-found"


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "wallet",
        help="top up a prepaid balance, look at it, have it back",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", metavar="URL")
    parser.add_argument("action", choices=tuple(_ACTIONS), metavar="ACTION")
    parser.add_argument("amount", nargs="?", type=dollars, metavar="USD")
    parser.add_argument("--gas", type=dollars, default="$0.05", metavar="USD", help="0.05 if not given")
    parser.add_argument("-n", "--limit", type=int, default=_COUNT, help=f"how many transactions; {_COUNT}")
    parser.add_argument("--allow-insecure", action="store_true", help="permit plain http and private addresses")
    parser.add_argument("--json", action="store_true", help="JSON, on a terminal too")
    add_keys(parser)
    parser.set_defaults(run=run, usage_error=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """Ask, and say what was answered."""
    action = arguments.action
    if (arguments.amount is None and action == "top-up") or (arguments.amount and action not in ("top-up", "withdraw")):
        arguments.usage_error("top-up takes an amount, withdraw may take one, and nothing else does")
    payer = Payer(
        **read_wallets(arguments),
        limits=limits_of(arguments, per_call="$0.00"),  # a top-up has its own
        journal=journal_path(arguments.journal),
        allow_insecure=arguments.allow_insecure,
    )
    words = sys.stderr.isatty() and not arguments.json
    try:
        with payer.wallet(arguments.url) as wallet:
            _ACTIONS[action](wallet, arguments, wants_json(arguments.json))
    except (TooDear, WalletServiceError) as e:
        return failed(payer, _elsewhere(e, arguments), words)
    except (PayerError, httpx.HTTPError, httpx.InvalidURL) as e:
        return failed(payer, e, words)
    except KeyboardInterrupt as e:
        if not open_reference(payer, e):
            raise
        return failed(payer, e, words)
    return OK


def _elsewhere(fault: TooDear | WalletServiceError, arguments: argparse.Namespace) -> PayerError:
    """With what it means where nothing there speaks as a wallet service does."""
    parts = httpx.URL(arguments.url)
    ask = f"is URL the wallet service's, such as {parts.scheme}://{parts.netloc.decode('ascii')}/v1/x402?"
    if isinstance(fault, TooDear):
        if arguments.action == "top-up":
            return fault
        return PolicyRefused(f"a payment was asked for, and nothing but top-up pays; {ask}")
    is_page = fault.status == 200 and not fault.code
    if parts.path.rstrip("/").endswith("/x402") or not (is_page or fault.status in (_NOT_FOUND, 405)):
        return fault
    return PayerError(f"{fault}; {ask}")


def _info(wallet: PrepaidWallet, arguments: argparse.Namespace, as_json: bool) -> None:
    found = wallet.info()
    if as_json:
        write_json(found.raw)
        return
    print(f"service  {plain(found.service) or '(without a name)'}")
    for network in found.networks:
        print(f"network  {plain(network_text(network))}")
    for what, amount in (("at least", found.minimum), ("at most", found.maximum)):
        if amount is not None:
            print(f"top-up   {what} {format_units(amount, 6)} USDC")


def _top_up(wallet: PrepaidWallet, arguments: argparse.Namespace, as_json: bool) -> None:
    made = wallet.top_up(arguments.amount, gas=arguments.gas)
    if as_json:
        shown = {name: value for name, value in asdict(made).items() if name != "payment"}
        write_json(_digits({**shown, "reference": made.payment.reference if made.payment else ""}))
        return
    credited, paid, balance = (
        amount_text(amount, made.network, made.asset) for amount in (made.credited, made.paid, made.balance)
    )
    print(f"credited {credited}, for {paid} on {plain(network_text(made.network))}")
    print(f"         transaction {plain(made.transaction)}")
    print(f"         {balance} are on the balance")
    if made.problem:
        print(f"         doubtful: {plain(made.problem)}")


def _balance(wallet: PrepaidWallet, arguments: argparse.Namespace, as_json: bool) -> None:
    found = wallet.balance()
    if as_json:
        write_json(_digits(asdict(found)))
        return
    held = f", {amount_text(found.held, found.network, found.asset)} held for calls under way" if found.held else ""
    where = plain(network_text(found.network))
    print(f"{amount_text(found.available, found.network, found.asset)} on {where}{held}")


def _transactions(wallet: PrepaidWallet, arguments: argparse.Namespace, as_json: bool) -> None:
    for move in wallet.transactions(arguments.limit):
        if as_json:
            write_json(_digits(asdict(move)))
            continue
        amounts = f"{format_units(move.amount, 6):>15} {format_units(move.balance_after, 6):>15}"
        what = plain(move.resource or move.transaction)
        print(f"{plain(move.created_at):20} {plain(move.type):10} {amounts}  {what}")


def _withdraw(wallet: PrepaidWallet, arguments: argparse.Namespace, as_json: bool) -> None:
    try:
        made = wallet.withdraw(arguments.amount)
    except WalletServiceError as e:
        if e.status == _NOT_FOUND and e.code == _NO_SUCH_PLACE:  # a wallet service said so, and not another server
            raise PayerError(f"this seller does not offer withdrawals ({_NOT_FOUND}: {e.code})") from e
        raise
    if as_json:
        write_json(_digits(asdict(made)))
        return
    state = "" if made.state == "settled" else f", {plain(made.state)} so far"
    print(f"withdrew {amount_text(made.amount, made.network, made.asset)} to {plain(made.wallet)}{state}")
    print(f"         transaction {plain(made.transaction)}")


def _digits(shown: Json) -> Json:
    """Amounts as text, like everywhere on the wire."""
    return {name: str(value) if isinstance(value, int) else value for name, value in shown.items()}


_ACTIONS: Final[dict[str, Callable[[PrepaidWallet, argparse.Namespace, bool], None]]] = {
    "info": _info,
    "top-up": _top_up,
    "balance": _balance,
    "transactions": _transactions,
    "withdraw": _withdraw,
}
