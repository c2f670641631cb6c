"""Our facilitator's claims where another process holds them, and a start that fails."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path

import httpx
import pytest

from tests.support.evm_payments import NETWORK, PAY_TO, offer_for, signed_payload
from tests.support.facilitators import BEARER, facilitating
from x402kit.asgi.facilitator import facilitator_app
from x402kit.devnet import EvmDevnet
from x402kit.errors import ConfigError
from x402kit.ledger.sqlite import SQLiteStore
from x402kit.model import Json, PaymentPayload
from x402kit.networks import EvmRail, evm
from x402kit.networks.evm_wallet import Wallet
from x402kit.protocols.x402 import requirements_json


def call_of(payload: Json) -> Json:
    wanted = requirements_json(offer_for())
    payment = {"x402Version": 2, "accepted": wanted, "payload": payload}
    return {"x402Version": 2, "paymentPayload": payment, "paymentRequirements": wanted}


async def test_what_another_process_has_only_begun_is_409_and_then_taken_over(chain: EvmDevnet, tmp_path: Path) -> None:
    """While that process lives there is no hash to name; when it is gone, nothing was sent, and we settle."""
    path = tmp_path / "f.db"
    payload = signed_payload(chain.accounts[1])
    with facilitating(chain, path, settle_seconds=0.3, reconcile_seconds=60) as front:
        async with httpx.AsyncClient(base_url=front.url, headers=BEARER, timeout=30) as http:
            await http.post("/settle", json=call_of(signed_payload(chain.accounts[1])))  # a row to start from
            alive = int(time.monotonic() * 1000) + 60_000
            payment_id = evm.parse(PaymentPayload(2, "exact", NETWORK, payload), offer_for()).payment_id
            with contextlib.closing(sqlite3.connect(path)) as store, store:
                columns = "payment_id = ?, state = 'claimed', owner = 'another', lease_until = ?, reference = ''"
                store.execute(f"UPDATE claims SET {columns}", (payment_id, alive))
            answer = await http.post("/settle", json=call_of(payload))
            assert (answer.status_code, answer.json()["error"]) == (409, "payment-in-progress")
            assert answer.headers["retry-after"]
            with contextlib.closing(sqlite3.connect(path)) as store, store:
                store.execute("UPDATE claims SET lease_until = 0")
            assert (await http.post("/settle", json=call_of(payload))).json()["success"] is True


async def test_a_start_that_fails_leaves_nothing_open(chain: EvmDevnet, tmp_path: Path) -> None:
    """Warnings are errors in these tests: a connection that is left open would be one."""
    wallet = Wallet(chain.accounts[0].private_key)
    rail = EvmRail("eip155:84532", pay_to=PAY_TO, wallet=wallet, rpc=chain.rpc_url)
    store = SQLiteStore(tmp_path / "f.db")
    app = facilitator_app(store, [rail], anonymous=True)
    with pytest.raises(ConfigError, match="eip155:8453"):
        async with app.router.lifespan_context(app):
            pass
    with pytest.raises(ConfigError, match="not open"):
        await store.get("evm:")
