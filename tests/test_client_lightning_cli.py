"""``x402kit pay`` with a Lightning node: as its users run it, from the environment and by options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.auth_seller import AuthSeller
from tests.support.auth_seller import seller as seller
from tests.support.auth_seller import server as server
from tests.support.clients import KEY
from tests.support.commands import Result, on_terminal, run
from x402kit.devnet import LightningDevnet
from x402kit.networks.lightning_port import REGTEST


@pytest.fixture
def env(lightning: LightningDevnet, tmp_path: Path) -> dict[str, str]:
    node = lightning.payer
    named = {"URL": f"lnd+{node.url}", "KEY": node.macaroon, "BTC_USD": "100000"}
    variables = {f"X402KIT_LIGHTNING_{name}": value for name, value in named.items()}
    return {"XDG_STATE_HOME": str(tmp_path), **variables}


def arguments(seller: AuthSeller, *more: str) -> tuple[str, ...]:
    return ("pay", "--allow-insecure", seller.url + "/weather", *more)


def said(result: Result) -> dict[str, Any]:
    (line,) = result.err.splitlines()
    made: dict[str, Any] = json.loads(line)
    return made


def test_pay_0_from_a_node_of_the_environment_and_then_by_the_token(seller: AuthSeller, env: dict[str, str]) -> None:
    seller.calls = 2
    done = run(*arguments(seller), env=env)
    assert (done.status, done.out) == (0, "goods")
    receipt = said(done)
    assert (receipt["price"], receipt["amount"], receipt["network"]) == ("21.000 sat", "21000", REGTEST)
    assert ([receipt["reference"]], receipt["verified"]) == (seller.settled(), True)
    again = said(run(*arguments(seller), env=env))
    assert (again["source"], again["reference"], again["amount"]) == ("token", receipt["reference"], "0")
    assert len(seller.settled()) == 1


def test_pay_on_a_terminal_in_words(seller: AuthSeller, env: dict[str, str]) -> None:
    seller.calls = 2
    shown = on_terminal(*arguments(seller), env=env)
    assert shown.status == 0
    assert f"paid 21.000 sat on lightning regtest ({REGTEST})" in shown.out
    assert f"payment hash {seller.settled()[0]}" in shown.out
    assert "paid before: a token of the payment" in on_terminal(*arguments(seller), env=env).out


def test_pay_by_options(seller: AuthSeller, lightning: LightningDevnet, tmp_path: Path) -> None:
    key = tmp_path / "admin.macaroon"
    key.write_bytes(bytes.fromhex(lightning.payer.macaroon))
    given = ("--lightning", f"lnd+{lightning.payer.url}", "--lightning-key", str(key), "--btc-usd", "100000")
    state = {"XDG_STATE_HOME": str(tmp_path)}
    assert run(*arguments(seller, *given, "--network", "lightning"), env=state).status == 0
    assert len(seller.settled()) == 1
    dear = run(*arguments(seller, *given, "--max-amount", "0.025"), env=state)
    assert (dear.status, said(dear)["error"]) == (4, "too_dear")


def test_pay_5_and_the_same_command_shows_the_same_payment(seller: AuthSeller, env: dict[str, str]) -> None:
    seller.calls, seller.script = 9, ["500"] * 3
    first = run(*arguments(seller), env=env)
    assert (first.status, said(first)["error"]) == (5, "outcome_unknown")
    assert run(*arguments(seller), env=env).status == 0
    assert (len(seller.settled()), len(set(seller.shown))) == (1, 1)


def test_pay_2_without_a_price_and_a_sellers_node_is_left_alone(seller: AuthSeller, env: dict[str, str]) -> None:
    del env["X402KIT_LIGHTNING_BTC_USD"]
    done = run(*arguments(seller), env=env)
    assert done.status == 2
    assert "--btc-usd" in done.err
    seller.speaks = ("l402",)
    other = run(*arguments(seller), env={**env, "X402KIT_EVM_KEY": KEY})
    assert (other.status, seller.settled()) == (3, [])


def test_pay_2_without_a_wallet_and_with_a_key_that_is_no_file(seller: AuthSeller, tmp_path: Path) -> None:
    bare = run(*arguments(seller), env={"XDG_STATE_HOME": str(tmp_path)})
    assert bare.status == 2
    assert "or a Lightning node: X402KIT_LIGHTNING_URL" in bare.err
    secret = "00aa" * 8
    given = ("--lightning", "lnd+http://127.0.0.1:1", "--lightning-key", secret, "--btc-usd", "100000")
    done = run(*arguments(seller, *given), env={"XDG_STATE_HOME": str(tmp_path)})
    assert done.status == 2
    assert "X402KIT_LIGHTNING_KEY takes a value" in done.err
    assert secret not in done.err


def test_pay_3_with_a_macaroon_that_may_not_pay_is_said_once(
    seller: AuthSeller, env: dict[str, str], lightning: LightningDevnet
) -> None:
    done = run(*arguments(seller), env={**env, "X402KIT_LIGHTNING_KEY": lightning.payer.invoice_macaroon})
    assert (done.status, said(done)["error"]) == (3, "not_accepted")


def test_pay_1_with_a_token_at_a_call_that_fails(seller: AuthSeller, env: dict[str, str]) -> None:
    seller.calls = 3
    assert run(*arguments(seller), env=env).status == 0
    seller.script = ["404"]
    shown = on_terminal(*arguments(seller), env=env)
    assert shown.status == 1
    assert f"status 404: a token of the payment {seller.settled()[0]} was shown" in shown.out
    assert "paid" not in shown.out.replace("of the payment", "")
