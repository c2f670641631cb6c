"""The local Lightning nodes: real payments between two of them, LND's words for all that goes wrong, nothing left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.commands import started, stopped_on_terminal
from x402kit.devnet import LightningDevnet, LightningNode, ToolMissing
from x402kit.networks.lightning_port import REGTEST


class Rest:
    """A node, called as LND's documentation says."""

    def __init__(self, node: LightningNode, macaroon: str = "") -> None:
        headers = {"Grpc-Metadata-macaroon": macaroon or node.macaroon}
        self.client = httpx.Client(base_url=node.url, headers=headers, timeout=20, trust_env=False)

    def get(self, path: str, status: int = 200) -> Any:
        return self._read(self.client.get(path), status)

    def post(self, path: str, status: int = 200, **body: Any) -> Any:
        return self._read(self.client.post(path, json=body), status)

    def invoice(self, msat: int = 5000, **more: Any) -> tuple[str, bytes]:
        made = self.post("/v1/invoices", value_msat=str(msat), **more)
        return made["payment_request"], b64decode(made["r_hash"])

    def pay(self, payment_request: str, status: int = 200) -> Any:
        wanted = {"payment_request": payment_request, "fee_limit_msat": "1000", "timeout_seconds": 10}
        return self.post("/v2/router/send", status, **wanted, no_inflight_updates=True)

    def _read(self, response: httpx.Response, status: int) -> Any:
        assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
        return json.loads(response.text.strip().splitlines()[-1])


@pytest.fixture
def seller(lightning: LightningDevnet) -> Iterator[Rest]:
    node = Rest(lightning.seller)
    with node.client:
        yield node
        node.post("/x402kit/pause", paused=False)


@pytest.fixture
def payer(lightning: LightningDevnet) -> Iterator[Rest]:
    node = Rest(lightning.payer)
    with node.client:
        yield node


def state(node: Rest, payment_hash: bytes) -> tuple[str, int]:
    found = node.get(f"/v1/invoice/{payment_hash.hex()}")
    return found["state"], int(found["amt_paid_msat"])


def track(node: Rest, payment_hash: bytes, status: int = 200) -> Any:
    return node.get(f"/v2/router/track/{urlsafe_b64encode(payment_hash).decode()}?no_inflight_updates=true", status)


def test_a_payment_moves_money_and_its_preimage_proves_it(seller: Rest, payer: Rest) -> None:
    before = int(seller.get("/v1/balance/channels")["local_balance"]["msat"])
    request, payment_hash = seller.invoice(12_345, memo="ein Kaffee ☕", expiry="60")
    assert request.startswith("lnbcrt")
    assert state(seller, payment_hash) == ("OPEN", 0)
    result = payer.pay(request)["result"]
    assert (result["status"], result["payment_hash"]) == ("SUCCEEDED", payment_hash.hex())
    assert sha256(bytes.fromhex(result["payment_preimage"])).digest() == payment_hash
    assert state(seller, payment_hash) == ("SETTLED", 12_345)
    assert int(seller.get("/v1/balance/channels")["local_balance"]["msat"]) == before + 12_345
    assert track(payer, payment_hash)["result"] == result
    assert payer.pay(request, 409)["error"]["message"] == "invoice is already paid"


def test_the_seller_can_pay_too(seller: Rest, payer: Rest) -> None:
    request, payment_hash = payer.invoice(7000)
    assert seller.pay(request)["result"]["status"] == "SUCCEEDED"
    assert state(payer, payment_hash) == ("SETTLED", 7000)


def test_each_macaroon_allows_what_its_namesake_allows_at_lnd(lightning: LightningDevnet) -> None:
    invoices = Rest(lightning.seller, lightning.seller.invoice_macaroon)
    with invoices.client:
        request, payment_hash = invoices.invoice()
        assert state(invoices, payment_hash) == ("OPEN", 0)
        assert (
            invoices.get("/v1/invoices?num_max_invoices=1&reversed=true")["invoices"][0]["payment_request"] == request
        )
        assert invoices.get("/v1/getinfo", 500)["message"] == "permission denied"
        assert invoices.pay(request, 500)["error"]["message"] == "permission denied"
    for macaroon in ("00", lightning.payer.macaroon):
        other = Rest(lightning.seller, macaroon)
        with other.client:
            assert other.get("/v1/getinfo", 500)["message"].startswith("verification failed")
    bare = httpx.get(f"{lightning.seller.url}/v1/getinfo", trust_env=False)
    assert bare.json() == {"code": 2, "message": "expected 1 macaroon, got 0", "details": []}


def test_what_nobody_knows_is_not_found(seller: Rest, payer: Rest) -> None:
    seller.invoice()
    assert seller.get(f"/v1/invoice/{'00' * 32}", 404)["message"] == "unable to locate invoice"
    assert track(payer, bytes(32), 404)["error"]["message"] == "payment isn't initiated"
    assert seller.get("/v1/nothing", 404) == {"code": 5, "message": "Not Found", "details": []}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"value": "1", "value_msat": "1000"}, 500, "mutually exclusive"),
        ({"value_msat": "-1"}, 500, "negative"),
        ({"value_msat": 1.5}, 400, "invalid value"),
        ({"amount": "1"}, 400, "unknown field"),
        ({"value": "1", "memo": "x" * 640}, 500, "memo too large"),
        ({"value": "1", "expiry": "31536001"}, 500, "max expiry"),
        ({"value": "1", "r_preimage": "AA=="}, 500, "preimage length"),
    ],
)
def test_an_invoice_that_lnd_refuses_is_refused(seller: Rest, body: dict[str, Any], status: int, message: str) -> None:
    assert message in seller.post("/v1/invoices", status, **body)["message"]


def test_an_expired_invoice_takes_no_money(seller: Rest, payer: Rest) -> None:
    request, payment_hash = seller.invoice(expiry="1")
    time.sleep(2.1)
    assert state(seller, payment_hash) == ("CANCELED", 0)
    assert "invoice expired" in payer.pay(request, 500)["error"]["message"]
    assert track(payer, payment_hash, 404)


def test_a_hold_invoice_waits_for_its_preimage(seller: Rest, payer: Rest) -> None:
    preimage = os.urandom(32)
    payment_hash = sha256(preimage).digest()
    hold: dict[str, Any] = {"hash": b64encode(payment_hash).decode(), "value_msat": "9000"}
    request = seller.post("/v2/invoices/hodl", **hold)["payment_request"]
    assert "already exists" in seller.post("/v2/invoices/hodl", 500, **hold)["message"]
    settle: dict[str, Any] = {"preimage": b64encode(preimage).decode()}
    assert seller.post("/v2/invoices/settle", 500, **settle)["message"] == "invoice still open"
    wanted = {"payment_request": request, "fee_limit_msat": "0", "timeout_seconds": 10}
    with payer.client.stream("POST", "/v2/router/send", json=wanted) as stream:
        lines = stream.iter_lines()
        assert json.loads(next(lines))["result"]["status"] == "IN_FLIGHT"
        assert payer.pay(request, 409)["error"]["message"] == "payment is in transition"
        assert state(seller, payment_hash) == ("ACCEPTED", 0)
        assert seller.post("/v2/invoices/settle", **settle) == {}
        assert json.loads(next(lines))["result"]["payment_preimage"] == preimage.hex()
    assert state(seller, payment_hash) == ("SETTLED", 9000)
    cancel: dict[str, Any] = {"payment_hash": b64encode(payment_hash).decode()}
    assert seller.post("/v2/invoices/cancel", 500, **cancel)["message"] == "invoice already settled"


def test_a_cancelled_payment_goes_back(seller: Rest, payer: Rest) -> None:
    seller.post("/x402kit/pause", paused=True)
    request, payment_hash = seller.invoice()
    before = payer.get("/v1/balance/channels")["local_balance"]
    wanted = {"payment_request": request, "fee_limit_msat": "0", "timeout_seconds": 10}
    with payer.client.stream("POST", "/v2/router/send", json=wanted) as stream:
        lines = stream.iter_lines()
        next(lines)
        assert state(seller, payment_hash) == ("ACCEPTED", 0)
        seller.post("/v2/invoices/cancel", payment_hash=b64encode(payment_hash).decode())
        ended = json.loads(next(lines))["result"]
    assert (ended["status"], ended["failure_reason"]) == ("FAILED", "FAILURE_REASON_INCORRECT_PAYMENT_DETAILS")
    assert payer.get("/v1/balance/channels")["local_balance"] == before
    assert state(seller, payment_hash) == ("CANCELED", 0)


def test_a_part_of_a_payment_waits_and_goes_back(seller: Rest, payer: Rest) -> None:
    request, payment_hash = seller.invoice(10_000)
    part: dict[str, Any] = {"payment_request": request, "fee_limit_msat": "10000"}
    assert payer.post("/x402kit/pay-part", **part)["status"] == "IN_FLIGHT"
    found = seller.get(f"/v1/invoice/{payment_hash.hex()}")
    assert (found["state"], found["amt_paid_msat"]) == ("OPEN", "0")
    assert found["htlcs"] == [{"amt_msat": "5000", "state": "ACCEPTED"}]
    for _ in range(4):
        seller.post("/x402kit/tick")
    assert track(payer, payment_hash)["result"]["status"] == "FAILED"
    assert payer.pay(request)["result"]["status"] == "SUCCEEDED"


def test_more_than_the_channel_holds_is_not_sent(seller: Rest, payer: Rest) -> None:
    request, payment_hash = seller.invoice(9_000_000_000)
    ended = payer.pay(request)["result"]
    assert (ended["status"], ended["failure_reason"]) == ("FAILED", "FAILURE_REASON_INSUFFICIENT_BALANCE")
    assert state(seller, payment_hash) == ("OPEN", 0)


async def test_a_subscriber_is_told_when_an_invoice_is_made_and_when_it_is_settled(
    lightning: LightningDevnet, seller: Rest, payer: Rest
) -> None:
    async with httpx.AsyncClient(headers=seller.client.headers, timeout=10, trust_env=False) as client:
        url = f"{lightning.seller.url}/v1/invoices/subscribe"
        opening = asyncio.create_task(client.send(client.build_request("GET", url), stream=True))
        await asyncio.sleep(0.5)
        assert not opening.done()  # as with LND, the headers come with the first message
        request, _ = await asyncio.to_thread(seller.invoice)
        await asyncio.to_thread(payer.pay, request)
        response = await opening
        lines = response.aiter_lines()
        told = [json.loads(await anext(lines))["result"] for _ in range(2)]
        await response.aclose()
    assert [(each["state"], each["payment_request"]) for each in told] == [("OPEN", request), ("SETTLED", request)]


def test_description_is_the_contract_of_the_command(lightning: LightningDevnet) -> None:
    said = json.loads(json.dumps(lightning.describe()))["lightning"]
    assert said["network"] == REGTEST
    assert [set(node) for node in said["nodes"]] == [{"url", "macaroon", "invoice_macaroon", "pubkey"}] * 2
    assert said["nodes"][0]["url"] == lightning.seller.url
    info = Rest(lightning.payer)
    with info.client:
        assert info.get("/v1/getinfo")["identity_pubkey"] == said["nodes"][1]["pubkey"]


def test_start_is_quick_and_stop_leaves_nothing() -> None:
    started = time.monotonic()
    with LightningDevnet() as nodes:
        assert time.monotonic() - started < 60  # 1.3 s on an idle machine
        assert nodes.running
    nodes.stop()
    assert [nodes.running] == [False]
    with pytest.raises(ProcessLookupError):
        os.kill(nodes.pid, 0)


def gone(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return False
    return True


def test_the_nodes_end_when_their_process_is_killed() -> None:
    script = "from x402kit.devnet import LightningDevnet; print(LightningDevnet().pid, flush=True); input()"
    with subprocess.Popen(
        (sys.executable, "-c", script), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 5
        while not gone(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert gone(pid)


def test_without_node_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ToolMissing, match=r"Lightning needs Node\.js"):
        LightningDevnet()


def test_the_command_starts_the_nodes_when_asked() -> None:
    with started("devnet", "--lightning") as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        seller, payer = said["lightning"]["nodes"]
        headers = {"Grpc-Metadata-macaroon": payer["macaroon"]}
        info = httpx.get(f"{payer['url']}/v1/getinfo", headers=headers, trust_env=False).json()
        assert info["identity_pubkey"] == payer["pubkey"] != seller["pubkey"]
        process.send_signal(signal.SIGTERM)
        rest, complaints = process.communicate(timeout=10)
    assert (process.returncode, rest, complaints, set(said)) == (0, "", "", {"evm", "svm", "lightning"})
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{payer['url']}/v1/getinfo", trust_env=False)


def test_the_command_shows_people_both_nodes() -> None:
    shown = stopped_on_terminal("devnet", "--lightning", after="Ctrl-C")
    text = shown.out
    assert shown.status == 0
    assert f"Lightning  {REGTEST}" in text.replace("\x1b[1m", "").replace("\x1b[0m", "").replace("\x1b[22m", "")
    assert "seller       http://127.0.0.1:" in text
    assert "payer        http://127.0.0.1:" in text
    assert "(invoices only)" in text
    assert text.count("export X402KIT_LIGHTNING_URL=lnd+http://127.0.0.1:") == 2
    assert text.count("export X402KIT_LIGHTNING_KEY=") == 2
