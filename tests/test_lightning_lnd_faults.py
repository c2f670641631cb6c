"""The LND adapter when the node is down, slow, lying or another: what is certain, what is not, and what is not said."""

from __future__ import annotations

import asyncio
import logging
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.faulty_http import HTML, FaultyHttp, HttpFault, faulty_http
from x402kit.devnet import LightningDevnet
from x402kit.errors import ConfigError, RailUnavailable
from x402kit.networks.lightning_port import REGTEST, InvoiceState, NewInvoice, PaymentState
from x402kit.networks.lnd import Lnd

SEND, TRACK = "/v2/router/send", "/v2/router/track"
WORDS: dict[str, Any] = {"code": 2, "message": "SECRET words of the node", "details": []}


@pytest.fixture
async def seller(lightning: LightningDevnet) -> AsyncIterator[Lnd]:
    node = Lnd(lightning.seller.url, lightning.seller.invoice_macaroon)
    await node.start()
    yield node
    await node.close()


@pytest.fixture
async def invoice(seller: Lnd) -> NewInvoice:
    return await seller.create(5000, expiry_seconds=60)


@pytest.fixture
async def to_seller(lightning: LightningDevnet) -> AsyncIterator[FaultyHttp]:
    async with faulty_http(lightning.seller.url) as proxy:
        yield proxy


@pytest.fixture
async def to_payer(lightning: LightningDevnet) -> AsyncIterator[FaultyHttp]:
    async with faulty_http(lightning.payer.url) as proxy:
        yield proxy


@pytest.fixture
async def far_seller(lightning: LightningDevnet, to_seller: FaultyHttp) -> AsyncIterator[Lnd]:
    """The seller's node, the proxy between; it waits a second for an answer."""
    node = Lnd(to_seller.url, lightning.seller.macaroon, seconds=1)
    await node.start()
    yield node
    await node.close()


@pytest.fixture
async def payer(lightning: LightningDevnet, to_payer: FaultyHttp) -> AsyncIterator[Lnd]:
    node = Lnd(to_payer.url, lightning.payer.macaroon, seconds=1)
    await node.start()
    yield node
    await node.close()


async def pay(node: Lnd, invoice: NewInvoice) -> PaymentState:
    return await node.pay(invoice.bolt11, max_fee=1000, timeout_seconds=1)


# Credentials


async def test_a_macaroon_may_be_hex_or_a_file(lightning: LightningDevnet, tmp_path: Path) -> None:
    binary, text = tmp_path / "admin.macaroon", tmp_path / "hex"
    binary.write_bytes(bytes.fromhex(lightning.payer.macaroon))
    text.write_text(lightning.payer.macaroon.upper() + "\n")
    for given in (lightning.payer.macaroon.upper(), binary, str(binary), text):
        node = Lnd(lightning.payer.url, given)
        await node.start()
        assert node.network == REGTEST
        await node.close()


@pytest.mark.parametrize("given", ["", "no-such-file-SECRET", "abc", "\0", "x" * 5000])
def test_a_macaroon_that_is_none_is_refused_and_not_repeated(given: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        Lnd("http://127.0.0.1:1", given)
    assert "SECRET" not in str(refused.value)
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(ConfigError, match="macaroon"):
        Lnd("http://127.0.0.1:1", empty)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://127.0.0.1", "http://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="http"):
        Lnd(url, "00")


async def test_a_macaroon_that_the_node_refuses_is_named_as_the_trouble(lightning: LightningDevnet) -> None:
    for macaroon in ("00", lightning.payer.macaroon):
        node = Lnd(lightning.seller.url, macaroon)
        with pytest.raises(ConfigError, match="refuses the macaroon") as refused:
            await node.start()
        assert macaroon not in str(refused.value) or macaroon == "00"


async def test_a_macaroon_for_invoices_can_not_pay(lightning: LightningDevnet, invoice: NewInvoice) -> None:
    payer = Lnd(lightning.payer.url, lightning.payer.invoice_macaroon)
    await payer.start()
    with pytest.raises(RailUnavailable):
        await pay(payer, invoice)
    with pytest.raises(RailUnavailable):
        await payer.payment(invoice.payment_hash)
    await payer.close()


async def test_nothing_shows_a_secret(
    lightning: LightningDevnet, to_payer: FaultyHttp, payer: Lnd, invoice: NewInvoice, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    to_payer.faults["/"] = HttpFault(forward=False, status=500, body=WORDS)
    with pytest.raises(RailUnavailable) as lookup:
        await payer.look_up(invoice.payment_hash)
    with pytest.raises(RailUnavailable) as create:
        await payer.create(1000, expiry_seconds=60)
    state = await pay(payer, invoice)
    said = [repr(payer), str(vars(payer)), repr(state), caplog.text]
    for error in (lookup.value, create.value):
        said += [repr(error), str(error), error.detail, error.reason]
    for text in said:
        assert "SECRET" not in text
        assert lightning.payer.macaroon not in text


# The node at the start


async def test_a_node_that_is_not_there_is_no_node(lightning: LightningDevnet) -> None:
    node = Lnd("http://127.0.0.1:1", lightning.seller.macaroon)
    with pytest.raises(ConfigError, match="not there"):
        await node.start()
    with pytest.raises(RailUnavailable):
        await node.create(1000, expiry_seconds=60)


@pytest.mark.parametrize(
    "fault",
    [
        HttpFault(forward=False, text=HTML, status=502),
        HttpFault(forward=False, text=HTML),
        HttpFault(forward=False, text="{" * 100_000),
        HttpFault(forward=False, body={}),
        HttpFault(forward=False, body=[]),
        HttpFault(forward=False, body={"chains": []}),
        HttpFault(forward=False, body={"chains": [{"chain": "bitcoin", "network": "simnet"}]}),
        HttpFault(forward=False, body={"chains": [{"chain": "litecoin", "network": "mainnet"}]}),
        HttpFault(forward=False, body={"chains": [{"chain": "bitcoin", "network": 7}]}),
        HttpFault(forward=False, status=500, body=WORDS),
        HttpFault(forward=False, status=403, body=WORDS),
        HttpFault(drop=True),
        HttpFault(delay=3),
        HttpFault(location="http://127.0.0.1:1/"),
    ],
)
async def test_what_is_no_lnd_is_refused_at_the_start(
    lightning: LightningDevnet, to_seller: FaultyHttp, fault: HttpFault
) -> None:
    node = Lnd(to_seller.url, lightning.seller.macaroon, seconds=1)
    to_seller.faults["/v1/getinfo"] = fault
    with pytest.raises(ConfigError) as refused:
        await node.start()
    assert "SECRET" not in str(refused.value)
    assert sum(to_seller.seen.values()) == 1
    to_seller.faults.clear()
    await node.start()
    assert node.network == REGTEST
    await node.close()


@pytest.mark.parametrize(
    "fault",
    [
        HttpFault(forward=False, status=500, body={"code": 2, "message": "permission denied", "details": []}),
        HttpFault(forward=False, body={"invoices": [{"payment_request": "lnbcrt1"}]}),
        HttpFault(forward=False, body={"invoices": 1}),
        HttpFault(forward=False, text=HTML, status=502),
        HttpFault(drop=True),
    ],
)
async def test_a_macaroon_for_invoices_that_gets_no_invoice_is_refused(
    lightning: LightningDevnet, to_seller: FaultyHttp, fault: HttpFault
) -> None:
    to_seller.faults["/v1/invoices"] = fault
    with pytest.raises(ConfigError):
        await Lnd(to_seller.url, lightning.seller.invoice_macaroon, seconds=1).start()


async def test_a_node_that_goes_away_is_out_of_reach(lightning: LightningDevnet) -> None:
    with LightningDevnet() as nodes:
        seller = Lnd(nodes.seller.url, nodes.seller.invoice_macaroon)
        payer = Lnd(nodes.payer.url, nodes.payer.macaroon)
        await seller.start()  # it has no invoice yet: one is made, to see the network
        await payer.start()
        assert seller.network == REGTEST
        invoice = await seller.create(1000, expiry_seconds=60)
        stream = seller.subscribe()
        listening = asyncio.create_task(anext(stream))
        await asyncio.sleep(0.3)
    with pytest.raises(RailUnavailable):
        await listening
    with pytest.raises(RailUnavailable):
        await seller.create(1000, expiry_seconds=60)
    with pytest.raises(RailUnavailable):
        await seller.look_up(invoice.payment_hash)
    with pytest.raises(RailUnavailable):  # certain: there was nobody to send it to
        await pay(payer, invoice)
    with pytest.raises(RailUnavailable):
        await payer.payment(invoice.payment_hash)
    await seller.close()
    await payer.close()


# Invoices


def changed(name: str, value: Any) -> Callable[[Any], Any]:
    return lambda answer: {**answer, name: value}


ELSE = b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    "fault",
    [
        HttpFault(text=HTML, status=502),
        HttpFault(text=HTML),
        HttpFault(text='{"r_hash": NaN}'),
        HttpFault(text='{"a": "' + "x" * 5_000_000 + '"}'),
        HttpFault(body=[]),
        HttpFault(body={}),
        HttpFault(status=500, body=WORDS),
        HttpFault(drop=True),
        HttpFault(delay=3),
        HttpFault(location="/v1/invoice"),
        HttpFault(change=changed("r_hash", ELSE)),
        HttpFault(change=changed("r_hash", "not base64")),
        HttpFault(change=changed("r_hash", 7)),
        HttpFault(change=changed("payment_request", "lnbcrt1")),
        HttpFault(change=changed("payment_request", None)),
    ],
)
async def test_an_invoice_that_is_not_what_was_asked_for_is_none(
    far_seller: Lnd, to_seller: FaultyHttp, fault: HttpFault
) -> None:
    to_seller.faults["/v1/invoices"] = fault
    with pytest.raises(RailUnavailable):
        await far_seller.create(5000, expiry_seconds=60)
    assert to_seller.seen["/v1/invoices"] == 1


async def test_an_invoice_over_another_amount_is_none(seller: Lnd, far_seller: Lnd, to_seller: FaultyHttp) -> None:
    other = await seller.create(4000, expiry_seconds=60)
    answer = {"payment_request": other.bolt11, "r_hash": b64encode(bytes.fromhex(other.payment_hash)).decode()}
    to_seller.faults["/v1/invoices"] = HttpFault(body=answer)
    with pytest.raises(RailUnavailable):
        await far_seller.create(5000, expiry_seconds=60)


@pytest.mark.parametrize(
    "fault",
    [
        HttpFault(text=HTML, status=404),  # a proxy's 404 is not the node's word
        HttpFault(status=404, body={"code": 5, "message": "Not Found", "details": []}),
        HttpFault(status=500, body=WORDS),
        HttpFault(body={}),
        HttpFault(text="7"),
        HttpFault(drop=True),
        HttpFault(delay=3),
        HttpFault(change=changed("r_hash", ELSE)),
        HttpFault(change=changed("state", "PAID")),
        HttpFault(change=changed("state", 1)),
        HttpFault(change=lambda answer: {**answer, "state": "SETTLED", "amt_paid_msat": 5000}),
        HttpFault(change=lambda answer: {**answer, "state": "SETTLED", "amt_paid_msat": "5e3"}),
        HttpFault(change=lambda answer: {**answer, "state": "SETTLED", "amt_paid_msat": "-5000"}),
        HttpFault(change=lambda answer: {**answer, "state": "SETTLED", "amt_paid_msat": "9" * 30}),
        HttpFault(change=lambda answer: {**answer, "state": "SETTLED", "amt_paid_msat": "٣"}),
    ],
)
async def test_an_answer_that_makes_no_sense_says_nothing_of_the_invoice(
    far_seller: Lnd, to_seller: FaultyHttp, invoice: NewInvoice, fault: HttpFault
) -> None:
    to_seller.faults["/v1/invoice/"] = fault
    with pytest.raises(RailUnavailable):
        await far_seller.look_up(invoice.payment_hash)
    to_seller.faults.clear()
    assert await far_seller.look_up(invoice.payment_hash) == InvoiceState("open")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, {"code": 5, "message": "unable to locate invoice", "details": []}),
        (404, {"code": 5, "message": "there are no existing invoices", "details": []}),
        (500, {"code": 2, "message": "unable to locate invoice", "details": []}),  # before 0.16
        (500, {"error": "unable to locate invoice", "code": 2, "message": "unable to locate invoice"}),  # before 0.12
    ],
)
async def test_every_lnds_way_to_say_that_it_knows_no_such_invoice(
    far_seller: Lnd, to_seller: FaultyHttp, invoice: NewInvoice, status: int, body: dict[str, Any]
) -> None:
    to_seller.faults["/v1/invoice/"] = HttpFault(status=status, body=body)
    assert await far_seller.look_up(invoice.payment_hash) == InvoiceState("unknown")


async def test_a_hash_that_is_none_reaches_no_node(far_seller: Lnd, to_seller: FaultyHttp) -> None:
    before = sum(to_seller.seen.values())
    for text in ("", "../getinfo", "00" * 31, "zz" * 32):
        with pytest.raises(ValueError, match="hex"):
            await far_seller.look_up(text)
    assert sum(to_seller.seen.values()) == before


@pytest.mark.parametrize("text", ['{"error": {"code": 2}}\n', "garbage\n", '{"result": {}}\n', "x" * 300_000, ""])
async def test_a_stream_that_makes_no_sense_breaks(far_seller: Lnd, to_seller: FaultyHttp, text: str) -> None:
    to_seller.faults["/v1/invoices/subscribe"] = HttpFault(forward=False, text=text)
    with pytest.raises(RailUnavailable):
        await anext(far_seller.subscribe())


async def test_a_stream_that_breaks_says_so(far_seller: Lnd, to_seller: FaultyHttp) -> None:
    waiting = asyncio.create_task(anext(far_seller.subscribe()))
    await asyncio.sleep(1.5)  # longer than an answer may take: silence is no fault
    assert not waiting.done()
    to_seller.cut()
    with pytest.raises(RailUnavailable):
        await waiting
    to_seller.faults["/v1/invoices/subscribe"] = HttpFault(forward=False, text=HTML, status=503)
    with pytest.raises(RailUnavailable):
        await anext(far_seller.subscribe())


# Payments


def told(**change: Any) -> Callable[[Any], Any]:
    return lambda answer: {"result": {**answer["result"], **change}}


def refusal(code: int, message: str = "SECRET words") -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "details": []}}


@pytest.mark.parametrize(
    "fault",
    [
        HttpFault(drop=True),
        HttpFault(delay=6),
        HttpFault(text=HTML, status=502),
        HttpFault(text=HTML),
        HttpFault(body={}),
        HttpFault(body=refusal(14), status=503),
        HttpFault(body=refusal(2), status=500),
        HttpFault(change=told(payment_preimage="00" * 32)),
        HttpFault(change=told(payment_hash="00" * 32)),
        HttpFault(change=told(status="FAILED")),
        HttpFault(change=told(fee_msat="-1")),
        HttpFault(change=told(status="PAID")),
    ],
)
async def test_a_payment_whose_answer_is_lost_is_looked_up(
    to_payer: FaultyHttp,
    payer: Lnd,
    seller: Lnd,
    invoice: NewInvoice,
    fault: HttpFault,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if fault.delay:
        monkeypatch.setattr("x402kit.networks.lnd.ANSWER_SECONDS", 0.2)
    to_payer.faults[SEND] = fault
    state = await pay(payer, invoice)
    assert (state.state, len(state.preimage)) == ("succeeded", 64)
    assert to_payer.seen[SEND] == 1  # not tried again
    assert await seller.look_up(invoice.payment_hash) == InvoiceState("settled", 5000)


@pytest.mark.parametrize(
    "fault",
    [
        HttpFault(forward=False, drop=True),
        HttpFault(forward=False, delay=6),
        HttpFault(forward=False, text=HTML, status=502),
        HttpFault(forward=False, text=HTML),
        HttpFault(forward=False, body={}),
        HttpFault(forward=False, body=refusal(14), status=503),
        HttpFault(forward=False, location="http://127.0.0.1:1/"),
    ],
)
async def test_a_payment_that_may_yet_arrive_is_pending(
    to_payer: FaultyHttp, payer: Lnd, invoice: NewInvoice, fault: HttpFault, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault.delay:
        monkeypatch.setattr("x402kit.networks.lnd.ANSWER_SECONDS", 0.2)
    to_payer.faults[SEND] = fault
    assert (await pay(payer, invoice)).state == "pending"
    assert to_payer.seen[SEND] == 1
    assert (await payer.payment(invoice.payment_hash)).state == "unknown"


@pytest.mark.parametrize("drop", [True, False])
async def test_a_payment_that_can_not_be_looked_up_is_pending(
    to_payer: FaultyHttp, payer: Lnd, invoice: NewInvoice, drop: bool
) -> None:
    to_payer.faults[SEND] = HttpFault(drop=True)
    to_payer.faults[TRACK] = HttpFault(drop=True) if drop else HttpFault(change=told(payment_preimage="11" * 32))
    assert (await pay(payer, invoice)).state == "pending"
    with pytest.raises(RailUnavailable):
        await payer.payment(invoice.payment_hash)
    to_payer.faults.clear()
    assert (await payer.payment(invoice.payment_hash)).state == "succeeded"


async def test_a_payment_that_the_node_refused_has_failed(
    to_payer: FaultyHttp, payer: Lnd, invoice: NewInvoice
) -> None:
    to_payer.faults[SEND] = HttpFault(forward=False, status=500, body=refusal(2))
    state = await pay(payer, invoice)
    assert (state.state, state.preimage) == ("failed", "")
    assert "SECRET" not in state.reason
    to_payer.faults[TRACK] = HttpFault(drop=True)
    assert (await pay(payer, invoice)).state == "pending"  # its records could have said otherwise


async def test_a_404_that_is_not_the_nodes_word_is_no_unknown_payment(
    to_payer: FaultyHttp, payer: Lnd, invoice: NewInvoice
) -> None:
    for fault in (
        HttpFault(text=HTML, status=404),
        HttpFault(status=404, body={"code": 5, "message": "Not Found", "details": []}),
        HttpFault(body={"result": {"status": "IN_FLIGHT"}}),
    ):
        to_payer.faults[TRACK] = fault
        with pytest.raises(RailUnavailable):
            await payer.payment(invoice.payment_hash)
