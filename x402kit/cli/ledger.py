"""``x402kit ledger``: check, mend, sum up and read a seller's books. Safe beside running servers."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import os
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigError, LedgerUnreachable, MissingExtra, ServerError
from ..ledger.open import store_of
from ..ledger.port import Fault, Store
from ..model import Account, Entry
from .output import bold, dim, error, green, plain, red, wants_json, write_json
from .report import asset_text, network_text, number_text
from .status import ERROR, OK, UNREACHABLE, USAGE

__all__ = ["add", "run"]

_DESCRIPTION = """Read a seller's books, and mend its balances. It may run beside the servers of that ledger.

  verify     does everything add up? status 1 and a list of faults if not
  rebuild    make all balances anew from the log of entries, which is what counts
  totals     what came in, what was earned, what is owed to payers; status 1 if it does not sum to zero
  statement  the entries of one account, the last at the end

LEDGER is a file or postgresql://…; without it X402KIT_LEDGER, or payments.db. On a terminal it writes for people, in a
pipe or with --json, JSON. Status 0: fine; 1: faults found; 2: no such ledger, or it can't be opened; 6: out of reach
or busy, ask again.
"""
_LEDGER: Final = "X402KIT_LEDGER"
_ACCOUNT: Final = "a wallet's address, or network:address such as eip155:8453:0x…; of Lightning, a payment hash"
_SQLITE: Final = b"SQLite format 3"
"""With it every such file begins."""
_PAGE: Final = 200
_NUMBERS: Final = ("external", "available", "held", "revenue", "suspense")
_Work = Callable[[Store, argparse.Namespace], Awaitable[int]]


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "ledger",
        help="check, mend and read a seller's books",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    works = parser.add_subparsers(required=True, metavar="WHAT")
    for name, work in (("verify", _verify), ("rebuild", _rebuild), ("totals", _totals), ("statement", _statement)):
        made = works.add_parser(name)
        if work is _statement:
            made.add_argument("account", help=_ACCOUNT)
            made.add_argument("--limit", type=_count, default=50, help="how many entries, the last ones (50)")
        made.add_argument("ledger", nargs="?", help=f"a file or postgresql://… (without it {_LEDGER})")
        made.add_argument("--json", action="store_true", help="JSON, on a terminal too")
        made.set_defaults(run=run, work=work)


def run(arguments: argparse.Namespace) -> int:
    """Open the ledger, do what was asked, close it. Raises ``ConfigError`` where there is no such ledger."""
    if (account := getattr(arguments, "account", "")) and _is_ledger(account):
        raise ConfigError(f"{account!r} is a ledger, and no account: x402kit ledger statement ACCOUNT [LEDGER]")
    place = arguments.ledger or os.environ.get(_LEDGER, "").strip() or "payments.db"
    if "://" not in place:
        _check_file(place)
    try:
        return asyncio.run(_opened(store_of(place), arguments))
    except MissingExtra as e:
        error(str(e))
        return USAGE  # 1 would say that faults were found
    except ServerError as e:
        if type(e.__cause__) is sqlite3.DatabaseError:  # the file is damaged, and will be when it is asked again
            raise ConfigError(f"{place!r} can't be read as a ledger: {e.__cause__}") from e
        error(f"the ledger did not answer: {e}")
        return UNREACHABLE
    except LedgerUnreachable as e:
        error(str(e))
        return UNREACHABLE


def _is_ledger(text: str) -> bool:
    """Whether a ledger was given where an account was asked for."""
    if "://" in text:
        return True
    try:
        with open(text, "rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except (OSError, ValueError):
        return False


def _check_file(place: str) -> None:
    """A store makes what is not there; who mistypes a name must not be told that all is well."""
    try:
        if not Path(place).is_file():
            raise ConfigError(f"there is no ledger at {place!r}")
        with contextlib.closing(sqlite3.connect(f"{Path(place).absolute().as_uri()}?mode=ro", uri=True)) as found:
            if found.execute("SELECT 1 FROM sqlite_master WHERE name = 'claims'").fetchone():
                return
    except (sqlite3.DatabaseError, OSError) as e:
        raise ConfigError(f"{place!r} can't be read as a ledger: {e}") from e
    raise ConfigError(f"{place!r} is no ledger")


async def _opened(store: Store, arguments: argparse.Namespace) -> int:
    await store.start()
    try:
        work: _Work = arguments.work
        return await work(store, arguments)
    finally:
        await store.close()


async def _verify(store: Store, arguments: argparse.Namespace) -> int:
    faults = await store.verify()
    empty = not faults and not await store.totals()
    if wants_json(arguments.json):
        write_json({"ok": not faults, "empty": empty, "faults": [fault._asdict() for fault in faults]})
    elif empty:
        print("Nothing is in the log yet.")
    else:
        for fault in faults:
            print(f"{red('fault')}  {fault.what}{_where(fault)}")
        print(red(f"{len(faults)} fault(s).") if faults else green("Everything adds up."))
    return ERROR if faults else OK


def _where(fault: Fault) -> str:
    if not fault.owner:
        return ""
    return plain(f"\n       {fault.owner} in {fault.asset}: {fault.expected} expected, {fault.found} found")


async def _rebuild(store: Store, arguments: argparse.Namespace) -> int:
    accounts = await store.rebuild()
    if wants_json(arguments.json):
        write_json({"accounts": accounts})
    else:
        print(f"{accounts} account(s) made anew from the log. Now: x402kit ledger verify")
    return OK


async def _totals(store: Store, arguments: argparse.Namespace) -> int:
    totals = await store.totals()
    good = all(sum(sums[name] for name in _NUMBERS) == 0 for sums in totals.values())
    if wants_json(arguments.json):
        write_json({"ok": good, "assets": totals})
        return OK if good else ERROR
    for asset, sums in totals.items():
        print(bold(_asset_text(asset)))
        lines = {
            "came in, less what went back": -sums["external"],
            "earned": sums["revenue"],
            "owed to payers, available": sums["available"],
            "owed to payers, held": sums["held"],
            "on its way back, or lost": sums["suspense"],
        }
        for what, amount in lines.items():
            print(f"  {what:<28} {_money(amount, asset):>22}")
    print(green("It sums to zero.") if good else red("It does not sum to zero."))
    return OK if good else ERROR


async def _statement(store: Store, arguments: argparse.Namespace) -> int:
    wallet: str = arguments.account
    network, colon, address = wallet.rpartition(":")
    # The assets that the log knows: the operator need not name them.
    assets = [asset.partition("/") for asset in await store.totals()]
    wanted = [Account.of(place, token, address) for place, _, token in assets if not colon or place == network]
    found = [(account, entries) for account in wanted if (entries := await _entries(store, account, arguments.limit))]
    if wants_json(arguments.json):
        write_json({"accounts": [await _account_json(store, account, entries) for account, entries in found]})
    else:
        for account, entries in found:
            await _show(store, account, entries)
    if not found:
        error(f"nothing is in the books of {wallet}")
    return OK if found else ERROR


async def _entries(store: Store, account: Account, limit: int) -> list[Entry]:
    """The last ones, oldest first."""
    found: list[Entry] = []
    while len(found) < limit:
        page = await store.entries(account, found[-1].id if found else None, min(_PAGE, limit - len(found)))
        if not page:
            break
        found += page
    return found[::-1]


async def _account_json(store: Store, account: Account, entries: list[Entry]) -> dict[str, Any]:
    balance = await store.balance(account)
    shown = {**account._asdict(), **balance._asdict()}
    return {**shown, "entries": [entry._asdict() for entry in entries]}


async def _show(store: Store, account: Account, entries: list[Entry]) -> None:
    print(bold(plain(f"{account.owner} in {_asset_text(account.asset)}")))
    print(dim(f"  {'when (UTC)':<19} {'what':<8} {'available':>15} {'held':>15} {'charged':>15} {'balance':>15}"))
    for entry in entries:
        when = datetime.datetime.fromtimestamp(entry.at, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
        moves = (entry.available, entry.held, entry.revenue)
        numbers = [f"{_number(amount, entry.asset):>15}" if amount else " " * 15 for amount in moves]
        balance = f"{_number(entry.balance, entry.asset):>15}"
        about = plain(" ".join(part for part in (entry.resource, entry.request_id, entry.reference) if part))
        print(f"  {when} {entry.type:<8} {' '.join(numbers)} {balance}  {dim(about)}".rstrip())
    now = await store.balance(account)
    print(f"  now: {_money(now.available, account.asset)} available, {_money(now.held, account.asset)} held")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < len(text) <= 7 or int(text) == 0:
        raise argparse.ArgumentTypeError(f"a number from 1 to 9999999, not {text!r}")
    return int(text)


def _asset_text(asset: str) -> str:
    network, _, address = asset.partition("/")
    return f"{asset_text(network, address)} on {network_text(network)}"


def _number(amount: int, asset: str) -> str:
    network, _, address = asset.partition("/")
    return number_text(amount, network, address)


def _money(amount: int, asset: str) -> str:
    network, _, address = asset.partition("/")
    unit = asset_text(network, address)
    return f"{_number(amount, asset)} {unit if unit != address else 'atomic units'}"
