"""A paywall that settles through a facilitator: what its callers are answered when the facilitator misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from tests.support.asking import Answer, ask
from tests.support.evm_payments import NETWORK, PAY_TO
from tests.support.facilitators import BEARER, Front, facilitating
from tests.support.faulty_facilitator import DROPPED, HTML_502, LOST, Fault
from tests.support.payments import Payment, pay
from x402kit import Paywall
from x402kit.asgi.gate import Gate
from x402kit.devnet import EvmDevnet
from x402kit.networks import EvmRail
from x402kit.networks.facilitator import FacilitatorRail

CENT = 10_000
USED = {"success": False, "errorReason": "invalid_exact_evm_nonce_already_used", "transaction": "", "network": NETWORK}
LIE = Fault(forward=False, json={"success": True, "transaction": "0x" + "ab" * 32, "network": NETWORK})


@pytest.fixture
def front(chain: EvmDevnet, tmp_path: Path) -> Generator[Front]:
    with facilitating(chain, tmp_path / "facilitator.db") as made:
        yield made


@dataclass
class Till:
    """A seller of one thing for a cent."""

    chain: EvmDevnet
    paywall: Paywall
    ledger: Path
    gate: Gate | None = None
    runs: int = 0

    async def goods(self, scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        self.runs += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"goods"})

    async def payment(self, **terms: Any) -> Payment:
        return pay((await self.show()).entry, **terms)

    async def show(self, payment: Payment | None = None, **options: Any) -> Answer:
        headers = {"PAYMENT-SIGNATURE": payment.v2()} if payment else {}
        return await self.ask(headers, **options)

    async def ask(self, headers: dict[str, str], **options: Any) -> Answer:
        assert self.gate is not None
        return await ask(self.gate, "GET", "/goods", headers, **options)

    @property
    def earned(self) -> int:
        return self.chain.balance_of(PAY_TO)

    async def until(self, states: list[str]) -> None:
        """Wait until the claims are in these states."""
        for _ in range(100):
            if self.states() == states:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(self.states())

    def states(self) -> list[str]:
        with contextlib.closing(sqlite3.connect(self.ledger)) as connection:
            return [row[0] for row in connection.execute("SELECT state FROM claims ORDER BY id")]


@contextlib.asynccontextmanager
async def selling(
    front: Front, chain: EvmDevnet, *, sees: bool = False, wait: float = 5.0, **settings: Any
) -> AsyncGenerator[Till]:
    """``wait`` is how long a caller waits for a settlement that is pending; ``settings`` are the rail's."""
    base = EvmRail(NETWORK, pay_to=PAY_TO, rpc=chain.rpc_url if sees else None)
    rail = FacilitatorRail(base, front.url, headers=BEARER, **settings)
    ledger = front.store.with_name("payments.db")
    paywall = Paywall([rail], ledger, origin="https://shop.example", settle_seconds=wait, reconcile_seconds=3600)
    till = Till(chain, paywall, ledger)
    till.gate = paywall.protect(till.goods, {"GET /goods": "$0.01"})
    try:
        yield till
    finally:
        await paywall.stop()


def is_unknown(answer: Answer) -> bool:
    """The contract's answer where money may have moved: no challenge, and the word for it."""
    assert answer.header("payment-required") == ""
    return (answer.status, answer.header("payment-outcome"), bool(answer.header("retry-after"))) == (
        504,
        "unknown",
        True,
    )


async def test_clients_of_every_dialect_are_served(chain: EvmDevnet, front: Front) -> None:
    async with selling(front, chain) as till:
        for spell in (Payment.v2, Payment.katana, Payment.venice):
            answer = await till.ask({"PAYMENT-SIGNATURE": spell(await till.payment())})
            assert (answer.status, answer.receipt.success, answer.receipt.amount) == (200, True, CENT)
        answer = await till.ask({"X-PAYMENT": (await till.payment()).v1()})
        assert answer.status == 200
        assert (till.runs, till.earned) == (4, 4 * CENT)


async def test_I01_down_at_the_check_is_503_and_the_same_payment_works_later(chain: EvmDevnet, front: Front) -> None:
    async with selling(front, chain) as till:
        payment = await till.payment()
        for fault in (DROPPED, HTML_502):
            front.faulty.faults["verify"] = [fault]
            answer = await till.show(payment)
            assert (answer.status, bool(answer.header("retry-after"))) == (503, True)
            assert answer.header("payment-required") == ""
            assert b"10.0.0" not in answer.body
        assert till.states() == []
        assert (await till.show(payment)).status == 200


@pytest.mark.parametrize("sees", [False, True])
async def test_I03_a_lost_answer_is_found_while_the_caller_waits(chain: EvmDevnet, front: Front, sees: bool) -> None:
    async with selling(front, chain, sees=sees) as till:
        front.faulty.faults["settle"] = [LOST]
        answer = await till.show(await till.payment())
        assert (answer.status, till.runs, till.earned) == (200, 1, CENT)
        assert chain.rpc("eth_getTransactionReceipt", answer.receipt.transaction)["status"] == "0x1"


@pytest.mark.parametrize("fault", [LOST, HTML_502, Fault(delay=0.6)])
async def test_I02_I03_an_unknown_outcome_is_504_and_the_same_payment_is_served(
    chain: EvmDevnet, front: Front, fault: Fault
) -> None:
    async with selling(front, chain, wait=0.1, settle_seconds=0.3) as till:
        front.faulty.faults["settle"] = [fault, HTML_502]
        payment = await till.payment()
        for _ in range(2):
            assert is_unknown(await till.show(payment))
        assert (till.states(), till.runs) == (["unknown"], 0)
        assert (await till.show(payment)).status == 200
        again = await till.show(payment)
        assert (again.status, again.header("payment-replayed")) == (200, "true")
        assert (till.runs, till.earned) == (1, CENT)


async def test_I02_settlement_pending_tells_the_hash(chain: EvmDevnet, tmp_path: Path) -> None:
    with facilitating(chain, tmp_path / "facilitator.db", settle_seconds=0.5, reconcile_seconds=60) as front:
        async with selling(front, chain, wait=0.1) as till:
            payment = await till.payment()
            chain.set_automine(False)
            answer = await till.show(payment)
            assert is_unknown(answer)
            chain.mine()
            chain.set_automine(True)
            served = await till.show(payment)
            assert served.status == 200
            assert answer.json()["reference"] == served.receipt.transaction


async def test_I04_a_lie_above_the_cap_gives_no_goods(
    chain: EvmDevnet, front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    async with selling(front, chain, sees=True, wait=0.4, check_above=0) as till:
        front.faulty.faults["settle"] = [LIE] * 3
        payment = await till.payment()
        assert is_unknown(await till.show(payment))
        assert "ALERT" in caplog.text
        assert is_unknown(await till.show(payment))
        chain.rpc("evm_increaseTime", 1200)
        chain.mine()
        answer = await till.show(payment)
        assert (answer.status, till.runs, till.earned) == (402, 0, 0)
        assert till.states() == ["failed"]


async def test_I05_a_certain_refusal_is_402_with_a_fresh_challenge(chain: EvmDevnet, front: Front) -> None:
    said = {"success": False, "errorReason": "insufficient_funds", "transaction": "", "network": NETWORK}
    async with selling(front, chain) as till:
        front.faulty.faults["settle"] = [Fault(forward=False, json=said)]
        payment = await till.payment()
        answer = await till.show(payment)
        assert (answer.status, answer.entry["amount"], till.runs) == (402, str(CENT), 0)
        assert (await till.show(payment)).status == 200


@pytest.mark.parametrize("sees", [False, True])
async def test_I06_used_after_a_lost_answer_is_served_only_with_evidence(
    chain: EvmDevnet, front: Front, sees: bool
) -> None:
    async with selling(front, chain, sees=sees, wait=3) as till:
        front.faulty.faults["settle"] = [LOST, *[Fault(forward=False, json=USED)] * 9]
        payment = await till.payment()
        answer = await till.show(payment)
        if sees:
            assert (answer.status, till.runs) == (200, 1)
        else:
            assert is_unknown(answer)
            assert is_unknown(await till.show(payment))
            await till.paywall.reconcile()
            assert (till.states(), till.runs) == (["unknown"], 0)


async def test_I07_what_never_arrived_is_sent_again_by_reconcile(chain: EvmDevnet, front: Front) -> None:
    async with selling(front, chain, sees=True, wait=0.1) as till:
        front.faulty.faults["settle"] = [DROPPED]
        payment = await till.payment()
        assert is_unknown(await till.show(payment))
        assert till.earned == 0
        assert is_unknown(await till.show(payment))  # and asks the facilitator again
        assert (await till.show(payment)).status == 200
        assert (till.runs, till.earned) == (1, CENT)


async def test_I12_a_caller_who_leaves_does_not_stop_the_settlement(chain: EvmDevnet, front: Front) -> None:
    async with selling(front, chain) as till:
        front.faulty.faults["settle"] = [Fault(delay=0.5)]
        payment = await till.payment()
        shown = asyncio.create_task(till.show(payment))
        await asyncio.sleep(0.2)
        shown.cancel()
        with pytest.raises(asyncio.CancelledError):
            await shown
        await till.until(["settled"])
        assert (await till.show(payment)).status == 200
        assert (till.runs, till.earned, len(front.faulty.of("settle"))) == (1, CENT, 1)
