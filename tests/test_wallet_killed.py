"""Processes killed while they send a balance back, or credit a top-up: real servers, a real chain (J01, E10)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.support.faulty_rpc import Fault
from tests.support.shop import Kill, Shop, faulty_node, opened
from tests.support.wallet_proofs import evm_wallet, header, katana
from x402kit.devnet import EvmDevnet
from x402kit.ledger.sqlite import SQLiteStore
from x402kit.model import Account
from x402kit.networks.evm import address_of

AMOUNT, ALL = 3_000_000, 5_000_000
STEPS = (
    "store.payout",
    "store.take_nonce",
    "rail.prepare_payout",
    "payout.intend",
    "rail.send",
    "rail.payout_outcome",
    "payout.confirm",
)
"""The steps of a withdrawal, in order: from the third on the row is claimed, from the fifth on it is sent."""
SERVICE = "x402kit"


class Bank:
    """A shop whose settlement wallet holds the balance of one owner."""

    def __init__(self, shop: Shop) -> None:
        self.shop, self.chain = shop, shop.chain
        self.key = secrets.token_bytes(32)
        self.owner = address_of(self.key)
        self.account = Account.of("eip155:8453", self.chain.usdc, self.owner)
        self.proof = self.new_proof()
        pay_to = address_of(bytes.fromhex(shop.setup.key))
        shop.setup = replace(shop.setup, pay_to=pay_to, withdraw=True, final_depth=4)
        self.chain.mint(pay_to, ALL)
        asyncio.run(self.deposit())

    def new_proof(self) -> dict[str, str]:
        return {"X-Sign-In-With-X": header(katana(evm_wallet(self.key), int(time.time()), service=SERVICE)).decode()}

    async def deposit(self) -> None:
        store = SQLiteStore(self.shop.setup.ledger)
        await store.start()
        await store.deposit(self.account, ALL, "by hand")
        await store.close()

    def withdraw(self, url: str, amount: str = "3") -> httpx.Response:
        body = {"amount_usdc": amount}
        return httpx.post(f"{url}/v1/x402/withdraw", headers=self.proof, json=body, timeout=20, trust_env=False)

    def die(self, kill: Kill) -> None:
        """Ask a process that is killed on the way."""
        server = self.shop.start(kill=kill)
        with contextlib.suppress(httpx.TransportError):
            self.withdraw(server.url)
        assert server.ended() == -signal.SIGKILL, "the step was not reached"
        self.check()

    def rows(self) -> list[tuple[str, int]]:
        found = self.shop.query("SELECT state, amount FROM payouts")
        return [(state, amount) for state, amount in found]

    def ended(self) -> bool:
        return all(state in ("settled", "failed") for state, _ in self.rows())

    def available(self) -> int:
        ((amount,),) = self.shop.query("SELECT available FROM accounts")
        return int(amount)

    @property
    def received(self) -> int:
        return self.chain.balance_of(self.owner)

    def check(self) -> None:
        """I1, I3 and I9 at any instant: nothing is lost or sent twice, nor sent while no row tells of it."""
        sums = "SELECT sum(external), sum(available), sum(held), sum(revenue), sum(suspense) FROM log"
        (external, available, held, revenue, suspense) = self.shop.query(sums)[0]
        assert external + available + held + revenue + suspense == 0
        assert (held, revenue) == (0, 0)
        assert available == self.available() >= 0
        under_way = sum(amount for state, amount in self.rows() if state in ("claimed", "sent", "unknown"))
        assert suspense == under_way, "money in suspense that no payout tells of"
        assert self.received in (0, AMOUNT), "sent twice"
        assert available + suspense + self.received >= ALL, "sent, and not taken from the balance"
        if self.received:
            assert any(state in ("sent", "unknown", "settled") for state, _ in self.rows()), "I9: sent, and not stored"

    def made_whole(self, seconds: float = 10) -> None:
        """Reconciled: sent exactly once, or the amount on the balance; and the same proof tells which."""
        server = self.shop.start()
        self.shop.wait_for(self.ended, seconds)
        self.check()
        assert self.available() + self.received == ALL
        before = self.rows()
        said = self.withdraw(server.url)
        if not before:  # it died before there was a row, and the proof was not spent
            assert (said.status_code, said.json()["state"]) == (200, "settled")
        else:
            assert said.json()["state"] == before[0][0]
        assert (said.json()["state"] == "settled") == (self.received == AMOUNT)
        self.check()
        self.nonces()
        self.proof = self.new_proof()
        left = self.available()
        rest = self.withdraw(server.url, f"{left / 1_000_000:.6f}")
        assert (rest.status_code, self.received, self.available()) == (200, ALL, 0)

    def nonces(self) -> None:
        for wallet, nonce in self.shop.query("SELECT wallet, nonce FROM nonces WHERE free = 0"):
            used = int(self.chain.rpc("eth_getTransactionCount", wallet.rpartition(":")[2], "latest"), 16)
            assert nonce < used, "B15: a nonce is held and will never be used"


@pytest.fixture
def bank(chain: EvmDevnet, tmp_path: Path) -> Iterator[Bank]:
    with opened(chain, tmp_path) as shop:
        yield Bank(shop)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_E10_J01_killed_while_it_sends_a_balance_back(bank: Bank, step: str, after: bool) -> None:
    bank.die(Kill(step, after))
    bank.made_whole()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("second", ["store.take_payout", "payout.drop"])
def test_E10_J01_killed_again_while_it_gives_back_what_was_never_sent(bank: Bank, second: str, after: bool) -> None:
    bank.die(Kill("rail.prepare_payout", after=True))
    die_while_reconciling(bank, Kill(second, after))
    bank.made_whole()
    assert bank.rows()[0] == ("failed", AMOUNT)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("second", ["store.take_payout", "rail.payout_outcome", "rail.send", "payout.lose"])
def test_E10_J01_killed_again_while_it_sends_what_was_to_be_sent(bank: Bank, second: str, after: bool) -> None:
    bank.die(Kill("payout.intend", after=True))
    die_while_reconciling(bank, Kill(second, after))
    bank.made_whole()
    assert bank.rows()[0] == ("settled", AMOUNT)


def die_while_reconciling(bank: Bank, kill: Kill) -> None:
    time.sleep(bank.shop.setup.lease)
    server = bank.shop.start(kill=kill)
    assert server.ended() == -signal.SIGKILL, "the step was not reached"
    bank.check()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", ["payout.fail"])
def test_E10_J01_killed_while_a_node_is_down(chain: EvmDevnet, tmp_path: Path, step: str, after: bool) -> None:
    with faulty_node(chain) as node, opened(chain, tmp_path, rpc=node.url) as shop:
        bank = Bank(shop)
        node.faults["eth_call"] = Fault(html=502)
        bank.die(Kill(step, after))
        node.faults.clear()
        bank.made_whole()
        assert bank.rows()[0] == ("failed", AMOUNT)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", ["rail.send", "store.confirm", "store.credit"])
def test_J01_killed_while_a_top_up_is_credited_and_nobody_comes_back(bank: Bank, step: str, after: bool) -> None:
    shop, payer = bank.shop, bank.chain.accounts[1]
    server = shop.start(kill=Kill(step, after))
    payment = shop.pay("/v1/x402/top-up", "POST", json.dumps({"amount_usdc": "2.00"}).encode())
    with contextlib.suppress(httpx.TransportError):
        shop.show(payment, server)
    assert server.ended() == -signal.SIGKILL, "the step was not reached"
    shop.start()
    credited = "SELECT available FROM accounts WHERE owner = ?"
    owner = f"eip155:8453:{payer.address.lower()}"
    shop.wait_for(lambda: shop.query(credited, owner) == [(2_000_000,)])
    assert sum(found.payment == payment.id for found in shop.transfers()) == 1
    again = shop.show_until_decided(payment)
    assert (again.status, again.json["balance_usdc"], again.replayed) == (200, "2.000000", True)
