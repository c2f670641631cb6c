"""Withdrawals: unused balance on its way back to its wallet, once, on a real chain and on both stores (E10)."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from tests.support.asking import ORIGIN, Answer, ask
from tests.support.faulty_rpc import Fault, FaultyRpc, faulty_rpc
from tests.support.payments import pay
from tests.support.rails import PAY_TO, OfflineRail
from tests.support.wallet_proofs import Wallet, evm_wallet, header, katana
from x402kit import Paywall
from x402kit.devnet import EvmDevnet
from x402kit.errors import RailUnavailable
from x402kit.model import Account, Claim, Intent, Json, Outcome
from x402kit.networks import Base, EvmOptions
from x402kit.networks.assets import DEFAULTS
from x402kit.networks.evm import address_of
from x402kit.networks.port import Nonces
from x402kit.protocols.x402 import decode_header

NETWORK = "eip155:8453"
FINAL = 4
SERVICE = "x402kit"


@dataclass
class Bank:
    """A seller whose settlement wallet holds what was paid, and one payer."""

    chain: EvmDevnet
    node: FaultyRpc
    ledger: Any
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    owner_key: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    paywall: Paywall = field(init=False)
    app: Any = None

    @property
    def pay_to(self) -> str:
        return address_of(self.key)

    @property
    def owner(self) -> str:
        return address_of(self.owner_key)

    @property
    def account(self) -> Account:
        return Account.of(NETWORK, self.chain.usdc, self.owner)

    def open(self, *, withdraw: bool = True, **settings: Any) -> None:
        options = EvmOptions(rpc_seconds=2.0, final_depth=FINAL)
        rail = Base(pay_to=self.pay_to, key=self.key, rpc=self.node.url, options=options)
        made: dict[str, Any] = {
            "origin": ORIGIN,
            "reconcile_seconds": 600,
            "settle_seconds": 15,
            "drain_seconds": 1,
            **settings,
        }
        self.paywall = Paywall([rail], self.ledger, **made)

        async def goods(request: Request) -> Response:
            return PlainTextResponse("goods")

        def service(**options: Any) -> Any:
            return self.paywall.wallet_service(minimum="$0.10", withdraw=withdraw, **options)

        routes = [
            Route("/goods", self.paywall.paid("$2")(goods)),
            Mount("/v1/x402", service()),
            Mount("/api/v1/x402", service(dialect="venice")),
        ]
        self.app = self.paywall.protect(Starlette(routes=routes))

    async def reopen(self, **options: Any) -> None:
        """Another process, as far as the ledger knows."""
        await self.paywall.stop()
        self.open(**options)
        await self.paywall.start()

    def proof(self, wallet: Wallet | None = None) -> dict[str, str]:
        made = katana(wallet or evm_wallet(self.owner_key), int(time.time()), service=SERVICE)
        return {"X-Sign-In-With-X": header(made).decode()}

    async def give(self, amount: int) -> None:
        """Balance from a deposit by hand, and the money for it in the settlement wallet."""
        await self.paywall.start()
        self.chain.mint(self.pay_to, amount)
        await self.paywall.store.deposit(self.account, amount, secrets.token_hex(8))

    async def withdraw(self, amount: str | None = None, proof: dict[str, str] | None = None) -> Answer:
        body = b"" if amount is None else json.dumps({"amount_usdc": amount}).encode()
        return await ask(self.app, "POST", "/v1/x402/withdraw", proof or self.proof(), body=body)

    async def available(self) -> int:
        return (await self.paywall.store.balance(self.account)).available

    def received(self) -> int:
        return self.chain.balance_of(self.owner)

    async def reconcile(self) -> None:
        """A pass that looks at every open payout now, whenever it was to be looked at."""
        for row in await self.paywall.store.due_payouts(int(time.time()) + 3600):
            await self.paywall.store.note_payout(row.payment_id, next_check=0)
        await self.paywall.reconcile()

    async def until(self, what: Callable[[Claim], bool]) -> None:
        async with asyncio.timeout(20):
            while True:
                await self.reconcile()
                rows = await self.paywall.store.due_payouts(2**40)
                if all(what(row) for row in rows):
                    return
                await asyncio.sleep(0.05)

    async def check(self, *, total: int) -> None:
        """I1: what came in is here, or was sent back, or is on its way."""
        store = self.paywall.store
        assert await store.verify() == []
        sums = (await store.totals())[self.account.asset]
        assert sum(sums[name] for name in ("external", "available", "held", "revenue", "suspense")) == 0
        assert sums["available"] + sums["revenue"] + sums["suspense"] + self.received() == total


@asynccontextmanager
async def opened(chain: EvmDevnet, ledger: Any, **settings: Any) -> AsyncGenerator[Bank]:
    async with faulty_rpc(chain.rpc_url) as node:
        made = Bank(chain, node, ledger)
        chain.rpc("anvil_setBalance", made.pay_to, hex(10**18))
        made.open(**settings)
        try:
            yield made
        finally:
            node.faults.clear()
            chain.set_automine(True)
            await made.paywall.stop()


@pytest.fixture
async def bank(chain: EvmDevnet, ledger: Any) -> AsyncGenerator[Bank]:
    async with opened(chain, ledger) as made:
        yield made


@pytest.fixture
async def file_bank(chain: EvmDevnet, tmp_path: Path) -> AsyncGenerator[Bank]:
    async with opened(chain, tmp_path / "payments.db") as made:
        yield made


def reason(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json()["reason"]


# The whole way


async def top_up(bank: Bank, amount: str) -> Json:
    """By a payment on the chain."""
    bank.chain.mint(bank.owner, 1_000_000_000)
    body = json.dumps({"amount_usdc": amount}).encode()
    asked = await ask(bank.app, "POST", "/v1/x402/top-up", body=body)
    entry = decode_header(asked.header("PAYMENT-REQUIRED"))["accepts"][0]
    shown = {"PAYMENT-SIGNATURE": pay(entry, key=bank.owner_key).v2()}
    said = await ask(bank.app, "POST", "/v1/x402/top-up", shown, body=body)
    assert said.status == 200, said.body
    made: Json = said.json()
    return made


async def test_E10_what_was_not_spent_goes_back_once(bank: Bank) -> None:
    topped = await top_up(bank, "10")
    assert topped["balance_usdc"] == "10.000000"
    assert (await ask(bank.app, "GET", "/goods", bank.proof())).body == b"goods"
    before, proof = bank.received(), bank.proof()
    said = await bank.withdraw(proof=proof)
    assert (said.status, said.header("cache-control")) == (200, "no-store")
    transaction = said.json()["transaction"]
    assert said.json() == {
        "wallet_address": bank.owner,
        "network": NETWORK,
        "asset": bank.chain.usdc,
        "withdrawn_usdc": "8.000000",
        "state": "settled",
        "transaction": transaction,
    }
    assert bank.chain.rpc("eth_getTransactionReceipt", transaction)["status"] == "0x1"
    assert (bank.received() - before, await bank.available()) == (8_000_000, 0)
    assert bank.chain.balance_of(bank.pay_to) == 2_000_000
    for _ in range(3):
        again = await bank.withdraw(proof=proof)
        assert (again.status, again.json()) == (200, said.json())
    assert reason(await bank.withdraw()) == (400, "insufficient_balance")
    await bank.reopen()
    assert (await bank.withdraw(proof=proof)).json() == said.json()
    assert bank.received() - before == 8_000_000
    assert await bank.paywall.store.verify() == []
    moves = (await ask(bank.app, "GET", f"/v1/x402/transactions/{bank.owner}", bank.proof())).json()["transactions"]
    assert [move["type"] for move in moves] == ["refund", "payout", "capture", "reserve", "deposit"]
    assert [move["amount_usdc"] for move in moves[:2]] == ["0.000000", "-8.000000"]
    assert moves[0]["transaction"] == transaction


async def test_a_part_goes_back(bank: Bank) -> None:
    await bank.give(5_000_000)
    said = await bank.withdraw("1.25")
    assert (said.status, said.json()["withdrawn_usdc"]) == (200, "1.250000")
    assert (bank.received(), await bank.available()) == (1_250_000, 3_750_000)
    await bank.check(total=5_000_000)


async def test_a_withdrawal_in_venices_words(file_bank: Bank) -> None:
    bank, place = file_bank, "/api/v1/x402"
    await bank.give(5_000_000)
    proof = bank.proof()
    said = await ask(bank.app, "POST", place + "/withdraw", proof, body=b'{"amount_usdc":"1.25"}')
    assert (said.status, said.json()["success"]) == (200, True)
    assert b'"amountWithdrawn":1.250000,' in said.body
    data = said.json()["data"]
    assert (data["walletAddress"], data["state"], len(data["transaction"])) == (bank.owner, "settled", 66)
    assert (await bank.withdraw(proof=proof)).json()["transaction"] == data["transaction"]  # one ledger for both
    moves = await ask(bank.app, "GET", f"{place}/transactions/{bank.owner}", bank.proof())
    found = [(move["type"], move["amount"]) for move in moves.json()["data"]["transactions"]]
    assert found == [("CHARGE", 0), ("CHARGE", -1.25), ("TOP_UP", 5)]
    too_much = await ask(bank.app, "POST", place + "/withdraw", bank.proof(), body=b'{"amount_usdc":"9"}')
    assert (too_much.status, too_much.json()["code"]) == (400, "INSUFFICIENT_BALANCE")
    bank.node.faults["*"] = Fault(html=502)
    failed = await ask(bank.app, "POST", place + "/withdraw", proof := bank.proof())
    assert (failed.status, failed.json()["code"]) == (503, "PAYOUT_FAILED")
    bank.node.faults.clear()
    again = await ask(bank.app, "POST", place + "/withdraw", proof)
    assert (again.status, again.json()["data"]["state"]) == (200, "failed")
    assert again.json()["data"]["reason"] == "not_sent"
    assert (await bank.available(), bank.received()) == (3_750_000, 1_250_000)


async def test_a_proof_is_not_spent_by_what_can_not_be(bank: Bank) -> None:
    await bank.give(5_000_000)
    proof = bank.proof()
    assert reason(await bank.withdraw("5.000001", proof)) == (400, "insufficient_balance")
    assert reason(await bank.withdraw("0.09", proof)) == (400, "amount_out_of_range")
    for amount in ("0", "-1", "1e1", "1.0000001", "x"):
        assert reason(await bank.withdraw(amount, proof))[0] == 400
    assert (await bank.withdraw("5", proof)).status == 200
    assert bank.received() == 5_000_000


@pytest.mark.parametrize(
    "body",
    [
        *(b"[]", b"{", b'{"amount_usdc":1}', b'{"amount_usdc":0}', b'{"amount_usdc":""}', b'{"amount_usdc":[]}'),
        *(b'{"amount_usdc":"1","amount_usdc":"2"}', b'{"amount":"1"}', b'{"amount_usdc":null,"amountUsdc":"1"}'),
    ],
)
async def test_a_body_that_is_none_sends_nothing(file_bank: Bank, body: bytes) -> None:
    await file_bank.give(5_000_000)
    said = await ask(file_bank.app, "POST", "/v1/x402/withdraw", file_bank.proof(), body=body)
    assert reason(said) == (400, "invalid_amount")
    assert (await ask(file_bank.app, "POST", "/v1/x402/withdraw", file_bank.proof(), body=b" " * 5000)).status == 413
    assert await file_bank.available() == 5_000_000


# Proofs


async def test_F01_a_proof_that_paid_a_call_sends_nothing_and_the_other_way_round(bank: Bank) -> None:
    await bank.give(10_000_000)
    proof = bank.proof()
    assert (await ask(bank.app, "GET", "/goods", proof)).status == 200
    assert reason(await bank.withdraw("1", proof)) == (403, "proof-used")
    proof = bank.proof()
    assert (await bank.withdraw("1", proof)).status == 200
    assert reason(await ask(bank.app, "GET", "/goods", proof)) == (403, "proof-used")
    await bank.check(total=10_000_000)


class PaysAtOnce(OfflineRail):
    payer_wallet = PAY_TO

    async def prepare_payout(self, to: str, amount: int, nonces: Nonces) -> Intent:
        return Intent("0x" + secrets.token_hex(32), b"payout")

    async def payout_outcome(self, claim: Claim) -> Outcome:
        scripted = await self._step("payout_outcome")
        return scripted or Outcome("settled", reference=claim.reference, final=True)

    async def send(self, intent: Intent) -> Outcome:
        return Outcome("pending", reference=intent.reference)


async def test_F01_a_proof_that_names_no_network_is_not_told_of_another_ones_payout(tmp_path: Path) -> None:
    owner = evm_wallet(secrets.token_bytes(32))
    rails = [PaysAtOnce(asset=DEFAULTS[network]) for network in (NETWORK, "eip155:137")]
    paywall = Paywall(rails, tmp_path / "payments.db", origin=ORIGIN)
    app = paywall.protect(Starlette(routes=[Mount("/v1/x402", paywall.wallet_service(withdraw=True))]))
    await paywall.start()
    accounts = [Account.of(rail.network, rail.asset.address, owner.address) for rail in rails]
    for account in accounts:
        await paywall.store.deposit(account, 5_000_000, account.owner)
    now = int(time.time())
    made = katana(owner, now, text=f"{SERVICE}\nWallet: {owner.address}\nIssued At: {now}")
    told: list[tuple[int, str]] = []
    for rail in (*rails, rails[0]):
        shown = {"X-Sign-In-With-X": header({**made, "network": rail.network}).decode()}
        said = await ask(app, "POST", "/v1/x402/withdraw", shown)
        told.append((said.status, said.json().get("withdrawn_usdc", said.json().get("reason"))))
    assert told == [(200, "5.000000"), (403, "proof-used"), (200, "5.000000")]
    assert [(await paywall.store.balance(account)).available for account in accounts] == [0, 5_000_000]
    await paywall.stop()


async def test_I02_a_payout_of_a_wallet_that_another_has_gone_before_is_seen_to_its_end(tmp_path: Path) -> None:
    owner, old, new = evm_wallet(secrets.token_bytes(32)), PaysAtOnce(), PaysAtOnce(pay_to="0x" + "1" * 40)
    account = Account.of(old.network, old.asset.address, owner.address)
    proof = {"X-Sign-In-With-X": header(katana(owner, int(time.time()), service=SERVICE)).decode()}
    told: list[tuple[int, str]] = []
    for rails, seen in (([old], [Outcome("pending")] * 9), ([new, old], [])):
        old.script["payout_outcome"] = seen
        paywall = Paywall(rails, tmp_path / "payments.db", origin=ORIGIN, reconcile_seconds=3600, settle_seconds=0)
        app = paywall.protect(Starlette(routes=[Mount("/v1/x402", paywall.wallet_service(withdraw=True))]))
        await paywall.start()
        await paywall.store.deposit(account, 5_000_000, "by hand")
        for row in await paywall.store.due_payouts(int(time.time()) + 3600):
            await paywall.store.note_payout(row.payment_id, next_check=0)
        await paywall.reconcile()
        said = await ask(app, "POST", "/v1/x402/withdraw", proof)
        told.append((said.status, said.json()["state"]))
        await paywall.stop()
    assert told == [(202, "unknown"), (200, "settled")]


@pytest.mark.parametrize(("down", "state"), [("intend", "failed"), ("confirm", "settled")])
async def test_J04_a_store_that_fails_on_the_way_says_nothing_of_the_payout_that_it_can_not_know(
    tmp_path: Path, down: str, state: str
) -> None:
    """503 would say that nothing was sent, or that the amount is on the balance again."""
    owner, rail = evm_wallet(secrets.token_bytes(32)), PaysAtOnce()
    paywall = Paywall([rail], tmp_path / "payments.db", origin=ORIGIN, reconcile_seconds=3600)
    app = paywall.protect(Starlette(routes=[Mount("/v1/x402", paywall.wallet_service(withdraw=True))]))
    await paywall.start()
    account = Account.of(rail.network, rail.asset.address, owner.address)
    await paywall.store.deposit(account, 5_000_000, "by hand")
    store: Any = paywall.store
    move, get, failing = store.move_payout, store.get_payout, False

    async def moved(payment_id: str, name: str, *rest: Any, **columns: Any) -> Any:
        nonlocal failing
        failing = failing or name == down
        if failing:
            raise RailUnavailable("store_unavailable")
        return await move(payment_id, name, *rest, **columns)

    async def got(payment_id: str) -> Any:
        if failing:
            raise RailUnavailable("store_unavailable")
        return await get(payment_id)

    store.move_payout, store.get_payout = moved, got
    proof = {"X-Sign-In-With-X": header(katana(owner, int(time.time()), service=SERVICE)).decode()}
    said = await ask(app, "POST", "/v1/x402/withdraw", proof)
    assert (said.status, said.json().get("withdrawn_usdc")) == (202, "5.000000")
    store.move_payout, store.get_payout = move, get
    await paywall.reconcile()
    again = await ask(app, "POST", "/v1/x402/withdraw", proof)
    assert (again.status, again.json()["state"]) == (200, state)
    assert (await store.balance(account)).available == (5_000_000 if state == "failed" else 0)
    await paywall.stop()


async def test_without_a_proof_or_with_a_bad_one_nothing_is_sent(file_bank: Bank) -> None:
    await file_bank.give(5_000_000)
    asked = await ask(file_bank.app, "POST", "/v1/x402/withdraw")
    assert (asked.status, decode_header(asked.header("PAYMENT-REQUIRED"))["accepts"]) == (402, [])
    made = katana(evm_wallet(secrets.token_bytes(32)), int(time.time()), service=SERVICE)
    forged = header({**made, "address": file_bank.owner}).decode()
    assert (await file_bank.withdraw(proof={"X-Sign-In-With-X": forged})).status in (400, 401)
    other = file_bank.proof(evm_wallet(secrets.token_bytes(32)))
    assert reason(await file_bank.withdraw(proof=other)) == (400, "insufficient_balance")
    assert await file_bank.available() == 5_000_000


async def test_F07_a_contract_wallet_is_asked_again(file_bank: Bank) -> None:
    bank, chain = file_bank, file_bank.chain
    contract = chain.deploy_erc1271_wallet(bank.owner)
    account = Account.of(NETWORK, chain.usdc, contract)
    await bank.paywall.start()
    chain.mint(bank.pay_to, 5_000_000)
    await bank.paywall.store.deposit(account, 5_000_000, "by hand")
    proof = bank.proof(evm_wallet(bank.owner_key, contract))
    look = f"/v1/x402/balance/{contract}"
    assert (await ask(bank.app, "GET", look, proof)).status == 200
    chain.set_code(contract, "0x5f5ffd")
    assert (await ask(bank.app, "GET", look, proof)).status == 200  # remembered, for half a minute
    assert (await bank.withdraw(proof=proof)).status == 401
    assert (await bank.paywall.store.balance(account)).available == 5_000_000


# At the same time


async def test_C10_withdrawals_and_calls_at_once_spend_no_more_than_there_is(bank: Bank) -> None:
    await bank.give(10_000_000)
    calls = [ask(bank.app, "GET", "/goods", bank.proof()) for _ in range(6)]
    sent = [bank.withdraw("2") for _ in range(6)]
    answers = await asyncio.gather(*[one for pair in zip(calls, sent, strict=True) for one in pair])
    good = [answer for answer in answers if answer.status == 200]
    assert len(good) == 5
    assert {answer.status for answer in answers} <= {200, 400, 402}
    await bank.check(total=10_000_000)
    assert await bank.available() == 0


async def test_E10_one_proof_shown_often_at_once_is_one_payout(bank: Bank) -> None:
    await bank.give(10_000_000)
    proof = bank.proof()
    answers = await asyncio.gather(*[bank.withdraw("3", proof) for _ in range(8)])
    assert {answer.status for answer in answers} <= {200, 202}
    assert {answer.json()["withdrawn_usdc"] for answer in answers} == {"3.000000"}
    await bank.check(total=10_000_000)
    assert bank.received() == 3_000_000


async def test_I12_one_wallet_has_few_payouts_under_way(file_bank: Bank) -> None:
    await file_bank.give(10_000_000)
    file_bank.node.faults["eth_sendRawTransaction"] = Fault(delay=0.3)
    answers = await asyncio.gather(*[file_bank.withdraw("0.5") for _ in range(12)])
    told = [answer.status for answer in answers]
    assert (told.count(429), set(told) - {429}) == (4, {200})
    await file_bank.check(total=10_000_000)
    assert (await file_bank.withdraw("0.5")).status == 200


async def test_all_is_what_is_there_when_it_is_taken(bank: Bank) -> None:
    await bank.give(10_000_000)
    calls = [ask(bank.app, "GET", "/goods", bank.proof()) for _ in range(3)]
    said, *answers = await asyncio.gather(bank.withdraw(), *calls)
    assert said.status in (200, 400)
    await bank.check(total=10_000_000)
    assert all(answer.status in (200, 402) for answer in answers)


# What can go wrong


async def test_I01_a_node_that_is_down_sends_nothing_and_the_balance_has_it_again(bank: Bank) -> None:
    await bank.give(5_000_000)
    proof = bank.proof()
    bank.node.faults["*"] = Fault(html=502)
    said = await bank.withdraw("3", proof)
    assert (said.status, said.json()["title"], said.header("retry-after")) == (503, "payout-failed", "2")
    assert b"SECRET" not in said.body
    assert await bank.available() == 5_000_000
    bank.node.faults.clear()
    again = await bank.withdraw("3", proof)  # that payout is over
    assert (again.status, again.json()["state"], again.json()["withdrawn_usdc"]) == (200, "failed", "0.000000")
    assert bank.received() == 0
    async with asyncio.timeout(20):  # that the node is down is remembered for some seconds
        while (await bank.withdraw("3")).status != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    await bank.check(total=5_000_000)
    assert bank.received() == 3_000_000


async def test_a_wallet_that_holds_too_little_sends_nothing(bank: Bank, caplog: pytest.LogCaptureFixture) -> None:
    await bank.paywall.start()
    await bank.paywall.store.deposit(bank.account, 5_000_000, "by hand")
    said = await bank.withdraw("3")
    assert (said.status, await bank.available()) == (503, 5_000_000)
    assert "ALERT" in caplog.text


async def test_a_wallet_that_the_token_refuses_costs_no_gas(file_bank: Bank) -> None:
    bank = file_bank
    await bank.give(5_000_000)
    bank.chain.send_as_minter("blacklist(address)", bank.owner)
    said = await bank.withdraw("3")
    assert reason(said) == (503, "payout_refused")
    assert (await bank.available(), bank.node.seen["eth_sendRawTransaction"]) == (5_000_000, 0)
    bank.chain.send_as_minter("unBlacklist(address)", bank.owner)
    assert (await bank.withdraw("3")).status == 200


async def test_I02_an_outcome_that_is_not_known_is_found_out(bank: Bank) -> None:
    await bank.reopen(settle_seconds=0.5)
    await bank.give(5_000_000)
    proof = bank.proof()
    bank.chain.set_automine(False)
    said = await bank.withdraw("3", proof)
    assert (said.status, said.json()["state"], said.json()["withdrawn_usdc"]) == (202, "unknown", "3.000000")
    assert (await bank.available(), bank.received()) == (2_000_000, 0)
    again = await bank.withdraw("3", proof)
    assert (again.status, again.json()["transaction"]) == (202, said.json()["transaction"])
    await bank.check(total=5_000_000)
    bank.chain.mine()
    await bank.until(lambda row: row.state == "settled")
    done = await bank.withdraw("3", proof)
    assert (done.status, done.json()["state"]) == (200, "settled")
    assert bank.received() == 3_000_000
    await bank.check(total=5_000_000)


@pytest.mark.parametrize("fault", [Fault(drop=True), Fault(html=502), Fault(text="not JSON"), Fault(delay=3)])
async def test_I02_an_answer_that_is_lost_sends_nothing_twice(file_bank: Bank, fault: Fault) -> None:
    bank = file_bank
    await bank.give(5_000_000)
    proof = bank.proof()
    fault.times = 1
    bank.node.faults["eth_sendRawTransaction"] = fault
    said = await bank.withdraw("3", proof)
    assert said.status in (200, 202)
    await bank.until(lambda row: row.state == "settled")
    assert (await bank.withdraw("3", proof)).status == 200
    assert bank.received() == 3_000_000
    await bank.check(total=5_000_000)


async def test_I07_what_the_mempool_lost_is_sent_again(file_bank: Bank) -> None:
    bank = file_bank
    await bank.reopen(settle_seconds=0.5)
    await bank.give(5_000_000)
    bank.chain.set_automine(False)
    assert (await bank.withdraw("3")).status == 202
    bank.chain.rpc("anvil_dropAllTransactions")
    await bank.reconcile()
    bank.chain.mine()
    await bank.until(lambda row: row.state == "settled")
    assert bank.received() == 3_000_000
    await bank.check(total=5_000_000)


async def test_a_transfer_that_can_never_land_is_balance_again(file_bank: Bank) -> None:
    """Its nonce was used by another transaction of the wallet."""
    bank = file_bank
    await bank.reopen(settle_seconds=0.5)
    await bank.give(5_000_000)
    proof = bank.proof()
    bank.chain.set_automine(False)
    assert (await bank.withdraw("3", proof)).status == 202
    bank.chain.rpc("anvil_dropAllTransactions")
    use_a_nonce(bank)
    bank.chain.set_automine(True)
    bank.chain.mine(FINAL + 1)
    await bank.reconcile()
    assert (await bank.available(), bank.received()) == (5_000_000, 0)
    failed = await bank.withdraw("3", proof)
    assert (failed.status, failed.json()["state"], failed.json()["reason"]) == (200, "failed", "payout_nonce_used")
    await bank.check(total=5_000_000)


def use_a_nonce(bank: Bank) -> None:
    chain = bank.chain
    chain.rpc("anvil_impersonateAccount", bank.pay_to)
    to = chain.accounts[5].address
    chain.rpc("eth_sendTransaction", {"from": bank.pay_to, "to": to, "value": "0x1"})
    chain.mine()
    chain.rpc("anvil_stopImpersonatingAccount", bank.pay_to)


async def test_I08_a_payout_that_left_the_chain_for_good_is_balance_again(
    own_chain: EvmDevnet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(own_chain, tmp_path / "payments.db") as bank:
        await bank.give(5_000_000)
        before = own_chain.snapshot()
        said = await bank.withdraw("3")
        assert (said.status, bank.received()) == (200, 3_000_000)
        own_chain.revert(before)
        use_a_nonce(bank)
        own_chain.mine(FINAL + 1)
        assert (await bank.available(), bank.received()) == (2_000_000, 0)
        with caplog.at_level(logging.ERROR):
            for _ in range(3):  # once, however often it is looked at
                await bank.reconcile()
        assert "ALERT: the settlement of payout:" in caplog.text
        assert await bank.available() == 5_000_000
        await bank.check(total=5_000_000)
        again = await bank.withdraw("5")
        assert (again.status, bank.received()) == (200, 5_000_000)
        await bank.check(total=5_000_000)


async def test_I08_a_payout_that_a_reorganisation_dropped_is_sent_again(own_chain: EvmDevnet, tmp_path: Path) -> None:
    async with opened(own_chain, tmp_path / "payments.db") as bank:
        await bank.give(5_000_000)
        before = own_chain.snapshot()
        proof = bank.proof()
        said = await bank.withdraw("3", proof)
        own_chain.revert(before)
        assert (said.status, bank.received()) == (200, 0)
        await bank.reconcile()
        await bank.reconcile()
        assert (bank.received(), await bank.available()) == (3_000_000, 2_000_000)
        own_chain.mine(FINAL + 1)
        await bank.reconcile()
        assert await bank.paywall.store.due_payouts(2**40) == []
        await bank.check(total=5_000_000)


async def test_C03_a_caller_who_leaves_changes_nothing(file_bank: Bank) -> None:
    bank = file_bank
    await bank.give(5_000_000)
    proof = bank.proof()
    bank.node.faults["eth_sendRawTransaction"] = Fault(delay=0.5, times=1)
    asking = asyncio.create_task(bank.withdraw("3", proof))
    async with asyncio.timeout(10):
        while bank.node.seen["eth_sendRawTransaction"] == 0:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    async with asyncio.timeout(10):
        while (await bank.withdraw("3", proof)).json()["state"] != "settled":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert bank.received() == 3_000_000
    await bank.check(total=5_000_000)


# Off


async def test_it_is_off_unless_the_seller_turns_it_on(chain: EvmDevnet, tmp_path: Path) -> None:
    async with opened(chain, tmp_path / "payments.db", withdraw=False) as bank:
        await bank.give(5_000_000)
        assert (await bank.withdraw()).status == 404
        assert "withdraw" not in (await ask(bank.app, "GET", "/v1/x402")).json()["endpoints"]
        assert await bank.available() == 5_000_000


async def test_what_was_begun_is_seen_to_its_end_when_it_is_turned_off(file_bank: Bank) -> None:
    bank = file_bank
    await bank.reopen(settle_seconds=0.5)
    await bank.give(5_000_000)
    bank.chain.set_automine(False)
    assert (await bank.withdraw("3")).status == 202
    await bank.reopen(withdraw=False)
    bank.chain.mine()
    await bank.until(lambda row: row.state == "settled")
    assert bank.received() == 3_000_000
    await bank.check(total=5_000_000)


async def test_it_says_where(file_bank: Bank) -> None:
    said = await ask(file_bank.app, "GET", "/v1/x402")
    assert said.json()["endpoints"]["withdraw"] == f"{ORIGIN}/v1/x402/withdraw"
    assert (await ask(file_bank.app, "GET", "/v1/x402/withdraw")).status == 405
