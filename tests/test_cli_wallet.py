"""`x402kit wallet`, and `x402kit pay --balance`: what they print, and each exit status."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from solders.keypair import Keypair
from starlette.responses import PlainTextResponse, Response

from tests.support.clients import ADDRESS, KEY
from tests.support.commands import Result, on_terminal, run
from tests.support.facilitators import wallet_rail
from tests.support.prepaid_shop import PrepaidShop, opened
from x402kit.cli import main
from x402kit.devnet import EvmDevnet

Command = Callable[..., Result]


@pytest.fixture
def shop() -> Iterator[PrepaidShop]:
    with opened() as made:
        yield made


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"X402KIT_EVM_KEY": KEY, "XDG_STATE_HOME": str(tmp_path)}


@pytest.fixture
def command(env: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """The command in this process, for a process each takes its time."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)

    def call(*arguments: str) -> Result:
        try:
            status = main([arguments[0], "--allow-insecure", *arguments[1:]])
        except SystemExit as ended:  # by argparse
            status = int(ended.code or 0)
        out, err = capfd.readouterr()
        return Result(status, out, err)

    return call


def said(done: Result) -> Any:
    return json.loads(done.out)


def test_a_balance_from_the_top_up_to_the_statement(shop: PrepaidShop, command: Command) -> None:
    info = said(command("wallet", shop.wallet, "info"))
    assert (info["service"], info["networks"][0]["network"]) == ("x402kit", "eip155:8453")
    made = said(command("wallet", shop.wallet, "top-up", "1.00"))
    assert (made["credited"], made["paid"], made["balance"], made["problem"]) == ("1000000", "1000000", "1000000", "")
    assert made["transaction"] == made["reference"]
    paid = command("pay", shop.url + "/goods", "--balance", "-d", "hi")
    receipt = json.loads(paid.err)
    assert (paid.status, paid.out) == (0, "goods hi")
    assert (receipt["source"], receipt["charged"], receipt["balance"]) == ("balance", "10000", "990000")
    assert (receipt["price"], receipt["verified"]) == ("0.010000 USDC", True)
    assert said(command("wallet", shop.wallet, "balance"))["available"] == "990000"
    moves = [json.loads(line) for line in command("wallet", shop.wallet, "transactions").out.splitlines()]
    assert [move["type"] for move in moves] == ["capture", "reserve", "deposit"]
    assert sum(int(move["amount"]) for move in moves) == 990_000
    assert len(command("wallet", shop.wallet, "transactions", "-n", "1").out.splitlines()) == 1


def test_the_same_in_words(shop: PrepaidShop, env: dict[str, str]) -> None:
    def shown(*arguments: str) -> str:
        done = on_terminal(arguments[0], "--allow-insecure", *arguments[1:], env=env)
        assert done.status == 0
        return done.out

    info = shown("wallet", shop.wallet, "info")
    assert "network  base (eip155:8453)" in info
    assert "top-up   at least 0.010000 USDC" in info
    assert "credited 1.000000 USDC, for 1.000000 USDC on base" in shown("wallet", shop.wallet, "top-up", "1.00")
    paid = shown("pay", shop.url + "/goods", "--balance")
    assert "paid 0.010000 USDC from the balance on base (eip155:8453)" in paid
    assert "0.990000 USDC are on the balance" in paid
    streamed = shown("pay", shop.url + "/v1/chat/completions", "--balance", "-j", '{"messages":[],"stream":true}')
    assert "paid at most 0.02" in streamed
    assert "0.987997 USDC on base (eip155:8453)\n" in shown("wallet", shop.wallet, "balance")
    assert "deposit           1.000000        1.000000  x402kit.top-up" in shown("wallet", shop.wallet, "transactions")


def test_a_withdrawal(chain: EvmDevnet, command: Command, env: dict[str, str]) -> None:
    with opened(rail=wallet_rail(chain), withdraw=True) as shop:
        command("wallet", shop.wallet, "top-up", "1.00", "--gas", "0.10")
        made = said(command("wallet", shop.wallet, "withdraw", "$0.40"))
        assert (made["amount"], made["state"], made["wallet"].lower()) == ("400000", "settled", ADDRESS.lower())
        done = on_terminal("wallet", shop.wallet, "--allow-insecure", "withdraw", env=env)
    assert done.status == 0
    assert f"withdrew 0.600000 USDC to {ADDRESS}" in done.out


def test_1_where_there_is_no_wallet_service(shop: PrepaidShop, command: Command) -> None:
    done = command("wallet", shop.url + "/nowhere", "balance")
    assert (done.status, done.out) == (1, "")
    assert "404" in json.loads(done.err)["message"]


def test_1_where_there_are_no_withdrawals(shop: PrepaidShop, command: Command) -> None:
    done = command("wallet", shop.wallet, "withdraw")
    assert (done.status, done.out) == (1, "")
    assert json.loads(done.err)["message"] == "this seller does not offer withdrawals (404: not-found)"


def test_1_a_top_up_below_the_least_names_the_least(shop: PrepaidShop, command: Command) -> None:
    done = command("wallet", shop.wallet, "top-up", "0.001")
    assert (done.status, done.out, shop.rail.settled) == (1, "", 0)
    assert "a top-up is from $0.01 to $" in json.loads(done.err)["message"]
    assert "priced" not in json.loads(done.err)["message"]


@pytest.mark.parametrize(
    "arguments",
    [("top-up",), ("top-up", "1"), ("balance", "1.00"), ("take",), ("transactions", "--limit", "x"), ("top-up", "one")],
)
def test_2_wrong_usage(shop: PrepaidShop, command: Command, arguments: tuple[str, ...]) -> None:
    done = command("wallet", shop.wallet, *arguments)
    assert (done.status, done.out, shop.seen) == (2, "", [])


def test_2_without_a_wallet(shop: PrepaidShop) -> None:
    assert run("wallet", shop.wallet, "balance").status == 2


def test_3_when_the_balance_is_too_low_and_alone(shop: PrepaidShop, command: Command) -> None:
    done = command("pay", shop.url + "/goods", "--balance", "only")
    assert (done.status, done.out, json.loads(done.err)["error"]) == (3, "", "balance_too_low")
    assert "--balance only" in json.loads(done.err)["message"]
    assert json.loads(command("pay", shop.url + "/goods", "--balance").err)["source"] == "payment"


def test_3_when_the_proof_is_refused(command: Command) -> None:
    with opened() as shop:
        shop.faults["/goods"] = [None, shop.refusal(), shop.refusal()]
        done = command("pay", shop.url + "/goods", "--balance")
    assert (done.status, json.loads(done.err)["error"]) == (3, "proof_not_accepted")


def test_4_a_top_up_above_the_days_cap(shop: PrepaidShop, command: Command) -> None:
    done = command("wallet", shop.wallet, "top-up", "1.00", "--max-per-day", "0.50")
    assert (done.status, json.loads(done.err)["error"]) == (4, "too_dear")
    assert "--max-per-day" in json.loads(done.err)["message"]


def test_5_a_call_that_is_still_under_way_is_open(shop: PrepaidShop, command: Command) -> None:
    busy = PlainTextResponse("busy", 409, {"retry-after": "0"})
    assert command("wallet", shop.wallet, "top-up", "1.00").status == 0
    shop.faults["/goods"] = [None, busy, busy, busy]
    done = command("pay", shop.url + "/goods", "--balance", "only")
    assert (done.status, json.loads(done.err)["error"]) == (5, "outcome_unknown")
    assert json.loads(command("pay", shop.url + "/goods", "--balance", "only").err)["balance"] == "990000"


def test_5_an_unknown_outcome_and_the_same_command_goes_on(shop: PrepaidShop, command: Command) -> None:
    shop.faults["/v1/x402/top-up"] = [None, "drop", "drop", "drop"]
    done = command("wallet", shop.wallet, "top-up", "1.00")
    assert (done.status, json.loads(done.err)["error"]) == (5, "outcome_unknown")
    assert said(command("wallet", shop.wallet, "top-up", "1.00"))["balance"] == "1000000"
    shop.faults["/goods"] = [None, "drop", "drop", "drop"]
    done = command("pay", shop.url + "/goods", "--balance")
    assert (done.status, json.loads(done.err)["error"]) == (5, "outcome_unknown")
    assert json.loads(done.err)["reference"].startswith("call-")
    assert json.loads(command("pay", shop.url + "/goods", "--balance").err)["replayed"]
    assert (shop.runs["goods"], shop.rail.settled) == (1, 1)


def test_M01_4_for_a_call_from_the_balance_that_is_too_dear_each_time(shop: PrepaidShop, command: Command) -> None:
    command("wallet", shop.wallet, "top-up", "0.20")
    for _ in range(3):
        done = command("pay", shop.url + "/goods", "--balance", "--max-amount", "0.0001")
        assert (done.status, done.out, json.loads(done.err)["error"]) == (4, "", "too_dear")
        assert "above --max-amount" in json.loads(done.err)["message"]
    assert command("pay", shop.url + "/dear", "--balance", "only").status == 4
    assert said(command("wallet", shop.wallet, "balance"))["available"] == "200000"
    assert (shop.runs["goods"], shop.runs["dear"]) == (0, 0)
    assert command("pay", shop.url + "/goods", "--balance", "--max-amount", "0.01").status == 0


def test_M01_a_price_that_was_not_the_one_asked_for_is_told_in_the_options_words(
    shop: PrepaidShop, command: Command, env: dict[str, str]
) -> None:
    command("wallet", shop.wallet, "top-up", "0.20")
    asked = httpx.get(shop.url + "/goods")
    cheap = Response(asked.content, 402, {"payment-required": asked.headers["payment-required"]})
    shop.faults["/dear"] = [cheap, None, cheap]
    receipt = json.loads(command("pay", shop.url + "/dear", "--balance").err)
    assert (receipt["source"], receipt["problem"]) == ("balance", "the call could cost more than --max-amount")
    shown = on_terminal("pay", "--allow-insecure", shop.url + "/dear", "--balance", env=env)
    assert "the receipt is doubtful: the call could cost more than --max-amount" in shown.out


@pytest.mark.parametrize("action", ["info", "balance", "transactions", "withdraw"])
def test_1_at_another_url_the_services_is_suggested(shop: PrepaidShop, command: Command, action: str) -> None:
    done = command("wallet", shop.url + "/nowhere", action)
    assert (done.status, done.out) == (1, "")
    assert f"is URL the wallet service's, such as {shop.wallet}?" in json.loads(done.err)["message"]
    page = command("wallet", shop.url + "/free", "info")
    assert (page.status, shop.wallet in page.err) == (1, True)
    shop.faults["/v1/x402"] = [PlainTextResponse("", 404)]
    assert "is URL" not in command("wallet", shop.wallet, "info").err


def test_3_a_refused_proof_of_a_wallet_is_no_payment(
    shop: PrepaidShop, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("X402KIT_SVM_KEY", str(Keypair()))
    done = command("wallet", shop.wallet, "balance", "--network", "solana")
    assert (done.status, json.loads(done.err)["error"]) == (3, "proof_not_accepted")
    assert "unsupported_chain" in json.loads(done.err)["message"]
    assert "payment" not in json.loads(done.err)["message"]


@pytest.mark.parametrize("action", ["info", "balance", "transactions", "withdraw"])
def test_M01_only_a_top_up_pays(shop: PrepaidShop, command: Command, action: str) -> None:
    done = command("wallet", shop.url + "/goods", action)
    assert (done.out, shop.rail.settled) == ("", 0)
    assert done.status == (3 if action == "info" else 1)
    assert f"is URL the wallet service's, such as {shop.wallet}?" in json.loads(done.err)["message"]
