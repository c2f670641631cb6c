"""`make demo`, from a clone and from an installed wheel: it ends by itself, and its sums are right."""

from __future__ import annotations

import http.client
import itertools
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.commands import environment, on_terminal, run, started
from tests.support.example import ROOT
from x402kit.cli import demo, main
from x402kit.cli.demo_rails import EvmDemo
from x402kit.cli.devnet import Stoppable
from x402kit.client import Payer, PrepaidWallet, Transaction
from x402kit.devnet import DevnetError, ToolMissing
from x402kit.money import Asset, parse_units


def amounts(pattern: str, text: str, coin: str = "USDC", decimals: int = 6) -> list[int]:
    """All that a pattern finds, in atomic units, line by line and group by group."""
    money = rf"(\d+\.\d{{{decimals}}}) {coin}"
    return [
        parse_units(amount, decimals)
        for match in re.finditer(pattern.replace("MONEY", money), text, re.MULTILINE)
        for amount in match.groups()
    ]


def is_gone(url: str) -> bool:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=2)
    try:
        connection.connect()
    except OSError:
        return True
    connection.close()
    return False


def check(text: str) -> None:
    """The demo's own sums again, on each chain, from what it printed."""
    _, evm, svm, lightning = re.split(r"^(?=chain    )", text, flags=re.MULTILINE)
    check_lightning(lightning)
    check_chain(evm, r"base \(eip155:8453\) to 0xf39F", r"0x[0-9a-f]{64}")
    check_chain(svm, r"solana \(solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp\) to 5kMD", r"[1-9A-HJ-NP-Za-km-z]{86,88}")
    assert all(is_gone(url) for url in re.findall(r"http://127\.0\.0\.1:\d+", text))


def check_chain(text: str, to: str, transaction: str) -> None:
    asked = amounts(rf"^   402    asks MONEY on {to}", text)
    paid = amounts(rf"^   paid   MONEY in block \d+, transaction {transaction}$", text)
    payer_before, seller_before = amounts(r"^before   payer MONEY, seller MONEY$", text)
    payer_after, seller_after = amounts(r"^after    payer MONEY, seller MONEY$", text)
    assert asked == paid
    assert len(paid) == 4
    assert len(set(re.findall(rf"transaction ({transaction})", text))) == 4
    assert (payer_before - payer_after, seller_after - seller_before) == (sum(paid), sum(paid))
    *chain, cost, balance = amounts(r"^         (?:the|left) \w+(?: \w+)?\s+MONEY$", text)
    assert chain == [sum(paid)] * 4
    assert cost + balance == sum(paid)
    check_balance(text, cost, balance)
    assert text.count('200    {"city":"Lisbon"') == 2
    assert len(re.findall(r"^   200    You asked: ", text, re.MULTILINE)) == 4
    assert "It adds up." in text


def check_lightning(text: str) -> None:
    """In msat, so that what a call left over shows: the payer's node, the seller's and the receipts say the same."""

    def msat(pattern: str) -> list[int]:
        return amounts(pattern, text, "BTC", 11)

    paid = msat(r"^   paid   MONEY over the channel, payment hash [0-9a-f]{64}$")
    regtest = r"lightning regtest \(bip122:0f9188f13cb7b2c71f2a335e3a4fc328\)"
    assert msat(rf"^   402    asks MONEY on {regtest} to 03[0-9a-f]{{64}}") == paid
    assert paid == [10_000, 2_000, 2_000]  # $0.01 at $100 000, and a little more than 1 sat for each chat
    payer_before, seller_before = msat(r"^before   payer MONEY, seller MONEY$")
    payer_after, seller_after = msat(r"^after    payer MONEY, seller MONEY$")
    assert (payer_before - payer_after, seller_after - seller_before) == (sum(paid), sum(paid))
    *chain, cost, balance = msat(r"^         (?:the|left) \w+(?: \w+)?\s+MONEY$")
    assert chain == [sum(paid)] * 4
    assert cost + balance == sum(paid)
    assert msat(r"^   cost   MONEY, MONEY became balance$") == [10_000, 0, 520, 1_480, 660, 1_340]
    assert "It adds up." in text


def check_balance(text: str, cost: int, balance: int) -> None:
    """Each call from the balance leaves what it says; the statement's moves lead to the same balance."""
    (credited, left) = amounts(r"^   credit MONEY, balance MONEY$", text)
    held = amounts(r"^   proof  of \w{40,44}; MONEY held$", text)
    calls = amounts(r"^   cost   MONEY, MONEY came back, balance MONEY$", text)
    rests = amounts(r"^   cost   MONEY, MONEY became balance$", text)
    assert left == credited + sum(rests[1::2])
    assert len(held) == 3
    for reserved, charged, back, after in zip(held, calls[::3], calls[1::3], calls[2::3], strict=True):
        left -= charged
        assert (reserved, left) == (charged + back, after)
    assert sum(calls[::3]) + sum(rests[::2]) == cost
    assert left == balance
    lines = re.findall(r"^         (payment|deposit|reserve|capture) +(-?\d+\.\d{6}) +(\d+\.\d{6})", text, re.MULTILINE)
    assert [kind for kind, _, _ in lines] == ["payment"] * 3 + ["deposit"] + ["reserve", "capture"] * 3
    running = 0
    for _, amount, after in lines:
        running += parse_units(amount.lstrip("-"), 6) * (-1 if amount.startswith("-") else 1)
        assert running == parse_units(after, 6)
    assert running == balance


def test_demo_pays_and_its_sums_are_right() -> None:
    done = run("demo")
    assert (done.status, done.err) == (0, "")
    assert "\x1b" not in done.out
    check(done.out)
    seconds = re.search(r"stopped again\. (\d+\.\d) s\.", done.out)
    assert seconds is not None
    assert float(seconds[1]) < 30  # 0.9 s on an idle machine


def test_demo_on_a_terminal_has_the_same_lines_in_colours() -> None:
    shown = on_terminal("demo")
    assert shown.status == 0
    assert "\x1b[1m" in shown.out
    check(re.sub(r"\x1b\[\d+m", "", shown.out))


def test_demo_from_an_installed_wheel(tmp_path: Path) -> None:
    built = subprocess.run(
        (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "site")
    env = environment({"PYTHONPATH": str(tmp_path / "site")})
    done = subprocess.run(
        (sys.executable, "-m", "x402kit", "demo"),
        cwd=tmp_path,
        env={name: value for name, value in env.items() if not name.startswith("COVERAGE")},  # it is a copy of us
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    check(done.stdout)


def test_demo_goes_on_without_a_chain_that_this_machine_has_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> EvmDemo:
        raise ToolMissing("not built for this machine")

    monkeypatch.setattr(demo, "RAILS", (EvmDemo, missing))
    assert main(["demo"]) == 0
    assert "left out: not built for this machine" in capsys.readouterr().out
    monkeypatch.setattr(demo, "RAILS", (missing,))
    assert main(["demo"]) == 1


def test_demo_stops_everything_when_it_is_interrupted() -> None:
    with started("demo") as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[1].rstrip(",")
        process.send_signal(signal.SIGTERM)
        rest, complaints = process.communicate(timeout=20)
    assert (process.returncode, complaints) == (130, "")
    urls = [url, *re.findall(r"http://127\.0\.0\.1:\d+", rest)]
    assert all(is_gone(each) for each in urls)


def test_a_stop_that_somebody_swallowed_ends_the_block_at_its_next_check() -> None:
    reached: list[str] = []
    with Stoppable() as stop:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:  # noqa: BLE001  # as libraries do around an import
            reached.append("swallowed")
        stop.check()
        reached.append("gone on")
    assert reached == ["swallowed"]
    assert stop.asked


class Pickpocket(EvmDemo):
    """A chain that shows a balance which is off by one."""

    def balance_of(self, address: str) -> int:
        found = super().balance_of(address)
        return found - 1 if found and address == self.seller else found


class Thief(EvmDemo):
    """A seller whose pay_to is not who the payer should pay."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "X402KIT_EVM_PAY_TO": "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"}


class Broken(EvmDemo):
    """A seller without its key: it doesn't start."""

    def environment(self) -> dict[str, str]:
        return {name: value for name, value in super().environment().items() if name != "X402KIT_EVM_KEY"}


class Elsewhere(EvmDemo):
    """A demo that looks for transfers of another token."""

    def __init__(self) -> None:
        super().__init__()
        self.asset = Asset(self.asset.network, self.seller, "OTHER", 6)


class Poor(EvmDemo):
    """A seller whose settlement wallet can't pay for gas."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "X402KIT_EVM_KEY": "0x" + "12" * 32}


class ForgetfulWallet(PrepaidWallet):
    def transactions(self, limit: int | None = None) -> Generator[Transaction]:
        yield from itertools.islice(super().transactions(limit), 1, None)


class ForgetfulPayer(Payer):
    def wallet(self, base_url: str, client: httpx.Client | None = None, **named: Any) -> PrepaidWallet:
        made = super().wallet(base_url, client, **named)
        made.__class__ = ForgetfulWallet
        return made


class Forgetful(EvmDemo):
    """A seller whose statement lacks the last move."""

    def wallet(self, *arguments: Any, **named: Any) -> Payer:
        made = super().wallet(*arguments, **named)
        made.__class__ = ForgetfulPayer
        return made


@pytest.mark.parametrize("rail", [Pickpocket, Thief, Forgetful])
def test_demo_fails_when_the_sums_are_wrong(
    rail: type[EvmDemo], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "RAILS", (rail,))
    assert main(["demo"]) == 1
    assert "It does not add up." in capsys.readouterr().out


def test_demo_fails_when_the_chain_knows_nothing_of_the_transfer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "RAILS", (Elsewhere,))
    assert main(["demo"]) == 1
    told = capsys.readouterr().err
    assert "is no transfer of OTHER" in told
    assert "the seller's log" in told


def test_demo_fails_when_a_call_is_not_answered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "RAILS", (Poor,))
    assert main(["demo"]) == 1
    assert "status 503" in capsys.readouterr().err


def test_demo_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["demo"]) == 1
    assert "pip install 'x402kit-asgi[demo]'" in capsys.readouterr().err


def test_demo_shows_why_the_seller_did_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "RAILS", (Broken,))
    assert main(["demo"]) == 1
    assert "X402KIT_EVM_KEY" in capsys.readouterr().err


def test_a_transaction_that_is_not_there_is_no_transfer() -> None:
    with EvmDemo() as rail, pytest.raises(DevnetError, match="is no transfer of USDC"):
        rail.transfer("0x" + "00" * 32)
