"""A payer with a wallet on each chain, at a seller who takes both: each wallet has a balance of its own."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.support.clients import KEY, KINDS, request
from tests.support.commands import run
from tests.support.serving import free_port, serving
from tests.support.svm_rails import HINTS
from x402kit import Paywall
from x402kit.client import BalanceTooLow, Limits, Payer, payment_of
from x402kit.devnet import EvmDevnet, SvmDevnet
from x402kit.errors import ConfigError
from x402kit.networks import Base, Solana, SvmOptions
from x402kit.networks.svm_wallet import secret_key
from x402kit.protocols.x402 import decode_header, encode_header

BASE, SOLANA = "eip155:8453", "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"
EVM_TO = "0x1000000000000000000000000000000000000404"
PRICE = 10_000


@dataclass
class Shop:
    """Takes both, and keeps balances."""

    evm: EvmDevnet
    svm: SvmDevnet
    url: str

    @property
    def service(self) -> str:
        return self.url + "/v1/x402"

    def payer(self, **settings: Any) -> Payer:
        """With both wallets unless it is told otherwise."""
        keys = {"evm_key": KEY, "svm_key": self.svm.accounts[1].secret_key, "svm_rpc": self.svm.rpc_url}
        settings = {**keys, "limits": Limits(per_call="$0.05"), "backoff": 0, **settings}
        return Payer(allow_insecure=True, **settings)

    def earned(self) -> tuple[int, int]:
        return self.evm.balance_of(EVM_TO), self.svm.balance_of(self.svm.accounts[3].address)


@pytest.fixture(scope="module")
def shop(svm: SvmDevnet, tmp_path_factory: pytest.TempPathFactory) -> Generator[Shop]:
    with EvmDevnet() as evm:
        port = free_port()
        made = Shop(evm, svm, f"http://127.0.0.1:{port}")
        place: Path = tmp_path_factory.mktemp("both")
        rails = [
            Solana(pay_to=svm.accounts[3].address, key=svm.accounts[0].secret_key, rpc=svm.rpc_url, options=HINTS),
            Base(pay_to=EVM_TO, key=evm.accounts[0].private_key, rpc=evm.rpc_url),
        ]
        paywall = Paywall(rails, place / "payments.db", origin=made.url)

        @paywall.paid("$0.01")
        async def goods(request: Request) -> JSONResponse:
            return JSONResponse({"for": request.scope["x402kit"].payer})

        routes = [Route("/goods", goods), Mount("/v1/x402", paywall.wallet_service(minimum="$0.01"))]
        with serving(paywall.protect(Starlette(routes=routes)), port=port):
            yield made


def test_base_is_paid_first_when_nothing_else_decides(shop: Shop) -> None:
    """Though the seller has Solana first."""
    before = shop.earned()
    info = payment_of(request(shop.payer(), "httpx", "GET", shop.url + "/goods"))
    assert info is not None
    assert (info.network, info.verified) == (BASE, True)
    assert shop.earned() == (before[0] + PRICE, before[1])


@pytest.mark.parametrize("networks", [["solana"], ["solana", "base"]])
def test_the_limits_decide_which_network_is_paid_on(shop: Shop, networks: list[str]) -> None:
    before = shop.earned()
    paying = shop.payer(limits=Limits(per_call="$0.05", networks=networks))
    info = payment_of(request(paying, "httpx", "GET", shop.url + "/goods"))
    assert info is not None
    assert (info.network, info.verified) == (SOLANA, True)
    assert shop.earned() == (before[0], before[1] + PRICE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_solana_wallet_tops_up_and_calls_from_its_balance(shop: Shop, kind: str) -> None:
    paying = shop.payer(evm_key=None, balance="only")
    address = shop.svm.accounts[1].address
    assert paying.addresses == (address,)
    with paying.wallet(shop.service) as wallet:
        had = wallet.balance().available
        made = wallet.top_up("0.05")
        assert (made.wallet, made.network, made.credited, made.problem) == (address, SOLANA, 50_000, "")
        before = shop.earned()
        answer = request(paying, kind, "GET", shop.url + "/goods")
        assert (answer.status_code, answer.json()) == (200, {"for": address})
        info = payment_of(answer)
        assert info is not None
        assert (info.source, info.network, info.charged, info.verified) == ("balance", SOLANA, PRICE, True)
        assert shop.earned() == before
        left = wallet.balance()
        assert (left.wallet, left.network, left.available) == (address, SOLANA, had + 40_000)
        assert [each.charged for each in wallet.transactions(1)] == [PRICE]


def test_the_balances_of_two_wallets_are_two(shop: Shop) -> None:
    paying = shop.payer()
    with paying.wallet(shop.service, network="solana") as solana, paying.wallet(shop.service) as base:
        had = solana.balance().available, base.balance().available
        made = solana.top_up("0.02")
        assert (made.network, made.problem) == (SOLANA, "")
        assert (solana.balance().available, base.balance().available) == (had[0] + 20_000, had[1])
        assert base.top_up("0.03").network == BASE
        assert (solana.balance().available, base.balance().available) == (had[0] + 20_000, had[1] + 30_000)


def test_one_wallets_money_does_not_pay_for_the_other(shop: Shop) -> None:
    fresh = shop.payer(svm_key=shop.svm.accounts[5].secret_key, evm_key=None, balance="only")
    with pytest.raises(BalanceTooLow):
        request(fresh, "httpx", "GET", shop.url + "/goods")


def test_a_call_goes_from_the_balance_that_was_topped_up(shop: Shop) -> None:
    """The payer remembers on which network; the other wallet's balance is asked for nothing."""
    paying = shop.payer(balance="first")
    with httpx.Client(transport=paying.transport(), timeout=30) as client:
        paying.wallet(shop.service, client, network=SOLANA).top_up("0.02")
        info = payment_of(client.get(shop.url + "/goods"))
    assert info is not None
    assert (info.source, info.network, info.payer) == ("balance", SOLANA, shop.svm.accounts[1].address)


def test_a_wallet_that_there_is_none_of_is_refused(shop: Shop) -> None:
    with pytest.raises(ConfigError, match="no wallet for the network"):
        shop.payer(evm_key=None).wallet(shop.service, network="base")


def test_limits_say_whose_balance_is_meant(shop: Shop) -> None:
    """Of a payer with both wallets, where no network is named."""
    for networks, wanted in ((["solana"], SOLANA), (["solana", "base"], SOLANA), (["base"], BASE), (None, BASE)):
        paying = shop.payer(limits=Limits(networks=networks))
        with paying.wallet(shop.service) as wallet:
            assert wallet.balance().network == wanted, networks


def test_from_a_shell(shop: Shop, tmp_path: Path) -> None:
    keypair = tmp_path / "id.json"
    keypair.write_text(json.dumps(list(secret_key(shop.svm.accounts[1].secret_key))))
    file = ("--svm-keypair", str(keypair), "--allow-insecure", "--json")
    env = {"XDG_STATE_HOME": str(tmp_path), "X402KIT_EVM_KEY": KEY, "X402KIT_SVM_RPC_URL": shop.svm.rpc_url}
    before = shop.earned()
    paid = run("pay", shop.url + "/goods", *file, env=env)
    assert (paid.status, json.loads(paid.out)) == (0, {"for": shop.svm.accounts[1].address})
    assert json.loads(paid.err)["network"] == SOLANA
    assert shop.earned() == (before[0], before[1] + PRICE)

    env["X402KIT_SVM_KEY"] = shop.svm.accounts[1].secret_key
    said = run("wallet", shop.service, "balance", "--network", "solana", "--allow-insecure", "--json", env=env)
    assert (said.status, json.loads(said.out)["wallet"]) == (0, shop.svm.accounts[1].address)
    assert json.loads(run("pay", shop.url + "/goods", *file[2:], env=env).err)["network"] == BASE
    missing = run("pay", shop.url + "/goods", "--allow-insecure", env={"XDG_STATE_HOME": str(tmp_path)})
    assert missing.status == 2
    assert "X402KIT_SVM_KEY" in missing.err


class Katana:
    """Our own seller, whose offers on Solana are written as Katana's are: without ``extra``, and the price twice."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def rewrite(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [(name, self.entry(name, value)) for name, value in message["headers"]]
            await send(message)

        await self.app(scope, receive, rewrite)

    def entry(self, name: bytes, value: bytes) -> bytes:
        if name != b"payment-required":
            return value
        challenge = decode_header(value.decode())
        for each in challenge["accepts"]:
            each.pop("extra")
            each["maxAmountRequired"] = each["amount"]
        return encode_header({"x402Version": 2, "accepts": challenge["accepts"]}).encode()


def test_an_offer_as_katana_writes_it_is_paid_where_the_host_is_known(svm: SvmDevnet, tmp_path: Path) -> None:
    """The recipient pays the fees, the seller takes the relaxed layout, and nothing tells either of it but the host."""
    oracle = svm.accounts[0]
    options = SvmOptions(relaxed=True, hint_seconds=0.5)
    rail = Solana(pay_to=oracle.address, key=oracle.secret_key, rpc=svm.rpc_url, options=options)
    paywall = Paywall([rail], tmp_path / "payments.db")

    @paywall.paid("$0.01", protocols=["x402"])
    async def goods(request: Request) -> JSONResponse:
        return JSONResponse({"for": request.scope["x402kit"].payer})

    before = svm.balance_of(oracle.address)
    with serving(Katana(paywall.protect(Starlette(routes=[Route("/goods", goods)])))) as url:
        settings: Any = {"svm_key": svm.accounts[1].secret_key, "svm_rpc": svm.rpc_url, "allow_insecure": True}
        assert request(Payer(**settings), "httpx", "GET", url + "/goods").status_code == 402
        answer = request(Payer(**settings, katana_hosts=["127.0.0.1"]), "httpx", "GET", url + "/goods")
    assert (answer.status_code, answer.json()) == (200, {"for": svm.accounts[1].address})
    info = payment_of(answer)
    assert info is not None
    assert (info.verified, info.problem) == (True, "")
    assert svm.balance_of(oracle.address) - before == PRICE
