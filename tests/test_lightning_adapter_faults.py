"""The REST adapters when the node, its key or the way to it fails: no payment is called failed that may not have.

What a lost answer leaves in doubt is asked of the node, whose record decides (wire.md 9).
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import pytest

from tests.support.lightning import balance_of, cancel, holding
from tests.support.lightning_servers import clnrest, lnbits, phoenixd
from tests.support.lightning_servers.clnrest import Clnrest
from tests.support.lightning_servers.lnbits import LNbitsServer
from tests.support.lightning_servers.node import Json, Product, RealNode
from tests.support.lightning_servers.phoenixd import PhoenixdServer
from tests.support.lightning_servers.standing import Standing
from tests.support.serving import free_port, serving
from x402kit.devnet import LightningDevnet
from x402kit.errors import ConfigError, RailUnavailable
from x402kit.networks import CoreLightning, LNbits, Phoenixd
from x402kit.networks import cln as cln_module
from x402kit.networks.lightning_nodes import LightningNode
from x402kit.networks.lightning_port import InvoiceState, NewInvoice, PaymentState

AMOUNT = 12_000
FEE = 20_000
BAD = ("hang", "garbage", "empty", "moved")


@dataclass(frozen=True)
class Api:
    """A product: how its server and its adapter are made, and where its calls go."""

    name: str
    server: Callable[[RealNode], Product]
    adapter: Callable[[str, str, float], LightningNode]
    key: str
    limited_key: str
    start: str
    create: str
    look_up: str
    pay: str
    payment: str
    amount_lie: tuple[str, str]
    before_pay: dict[str, str] = field(default_factory=dict[str, str])

    def failing(self, call: str, fault: str) -> dict[str, str]:
        return {**self.before_pay, call: fault}


APIS = (
    Api(
        "cln",
        Clnrest,
        lambda url, key, seconds: CoreLightning(url, key, seconds=seconds),
        clnrest.RUNE,
        clnrest.INVOICE_RUNE,
        start="/v1/getinfo",
        create="/v1/invoice",
        look_up="/v1/listinvoices",
        pay="/v1/xpay",
        payment="/v1/listpays",
        amount_lie=(r'("amount_received_msat": ?)(\d+)', r"\1\2.0"),
    ),
    Api(
        "phoenixd",
        PhoenixdServer,
        lambda url, key, seconds: Phoenixd(url, key, seconds=seconds, poll_seconds=0.1),
        phoenixd.PASSWORD,
        phoenixd.LIMITED_PASSWORD,
        start="/getinfo",
        create="/createinvoice",
        look_up="/payments/incoming/",
        pay="/payinvoice",
        payment="/payments/outgoingbyhash/",
        amount_lie=(r'("receivedSat": ?)(\d+)', r'\1"\2"'),
    ),
    Api(
        "lnbits",
        LNbitsServer,
        lambda url, key, seconds: LNbits(url, key, seconds=seconds, poll_seconds=0.1),
        lnbits.ADMIN_KEY,
        lnbits.INVOICE_KEY,
        start="/api/v1/wallet",
        create="POST /api/v1/payments",
        look_up="GET /api/v1/payments/",
        pay="POST /api/v1/payments",
        payment="GET /api/v1/payments/",
        amount_lie=(r'("amount": ?)(\d+)', r'\1"\2"'),
        before_pay={"/fee-reserve": ""},
    ),
)


@dataclass
class Ground:
    """A product's servers on both nodes, and adapters of them: quick to give up, as their nodes are near."""

    api: Api
    nodes: LightningDevnet
    ours: Product
    theirs: Product
    url: str
    seller: LightningNode
    payer: LightningNode

    async def invoice(self, *, expiry_seconds: int = 300) -> NewInvoice:
        return await self.seller.create(AMOUNT, memo="a call", expiry_seconds=expiry_seconds)

    async def pay(self, made: NewInvoice, *, seconds: float = 5, fee: int = FEE) -> PaymentState:
        return await self.payer.pay(made.bolt11, max_fee=fee, timeout_seconds=seconds)

    def was_paid(self) -> bool:
        return any(self.api.pay in call for call in self.theirs.calls)


@pytest.fixture(scope="module")
def standing() -> Iterator[Standing]:
    with Standing() as servers:
        yield servers


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cln_module, "GRACE_SECONDS", 0.3)


@pytest.fixture(params=APIS, ids=lambda api: str(api.name))
async def ground(
    request: pytest.FixtureRequest, lightning: LightningDevnet, standing: Standing
) -> AsyncIterator[Ground]:
    api: Api = request.param
    (ours, url), (theirs, their_url) = (standing.of(api.server, node) for node in (lightning.seller, lightning.payer))
    seller, payer = api.adapter(url, api.limited_key, 2), api.adapter(their_url, api.key, 2)
    await seller.start()
    await payer.start()
    theirs.calls.clear()
    yield Ground(api, lightning, ours, theirs, url, seller, payer)
    await seller.close()
    await payer.close()


async def test_I11_a_wrong_key_is_told_at_the_start_and_never_shown(
    ground: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = "5ec2e7" * 8
    node = ground.api.adapter(ground.url, wrong, 2)
    with pytest.raises(ConfigError) as told:
        await node.start()
    assert node.network == ""
    assert wrong not in f"{told.value} {told.value!r} {node!r} {caplog.text}"
    for bad in ("", "a key\nX-Other: header", "ключ"):
        with pytest.raises(ConfigError) as told:
            ground.api.adapter(ground.url, bad, 2)
        assert not bad or bad not in str(told.value)


async def test_no_node_there_is_told_at_the_start(ground: Ground) -> None:
    with pytest.raises(ConfigError, match="not there"):
        await ground.api.adapter(f"http://127.0.0.1:{free_port()}", ground.api.key, 2).start()
    for url in ("", "127.0.0.1:80", "ftp://127.0.0.1/", "http://"):
        with pytest.raises(ConfigError):
            ground.api.adapter(url, ground.api.key, 2)


@pytest.mark.parametrize("fault", BAD)
async def test_what_answers_otherwise_is_no_such_node(ground: Ground, fault: str) -> None:
    ground.ours.faults = {ground.api.start: fault}
    node = ground.api.adapter(ground.url, ground.api.key, 0.3)
    with pytest.raises(ConfigError):
        await node.start()
    assert not [call for call in ground.ours.calls if "elsewhere" in call]  # K05


@pytest.mark.parametrize("fault", ["garbage", "empty", "moved"])
async def test_an_answer_that_makes_no_sense_is_no_answer(ground: Ground, fault: str) -> None:
    made = await ground.invoice()
    calls = (ground.api.create, ground.api.look_up, ground.api.payment)
    ground.ours.faults = ground.theirs.faults = dict.fromkeys(calls, fault)
    with pytest.raises(RailUnavailable):
        await ground.invoice()
    with pytest.raises(RailUnavailable):
        await ground.seller.look_up(made.payment_hash)
    with pytest.raises(RailUnavailable):
        await ground.payer.payment(made.payment_hash)


async def test_no_answer_is_not_waited_for_without_end(ground: Ground) -> None:
    ground.ours.faults = {ground.api.look_up: "hang"}
    with pytest.raises(RailUnavailable):
        await ground.seller.look_up("5a" * 32)


async def test_an_invoice_for_another_amount_is_not_taken(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    add = ground.ours.node.add

    async def more(msat: int, memo: str, expiry: int) -> Json:
        return await add(msat + 1000, memo, expiry)

    monkeypatch.setattr(ground.ours.node, "add", more)
    with pytest.raises(RailUnavailable):
        await ground.invoice()


async def test_an_amount_of_another_type_is_not_read(ground: Ground) -> None:
    made = await ground.invoice()
    assert (await ground.pay(made)).state == "succeeded"
    assert await ground.seller.look_up(made.payment_hash) == InvoiceState("settled", AMOUNT)
    ground.ours.lies = [ground.api.amount_lie]
    with pytest.raises(RailUnavailable):
        await ground.seller.look_up(made.payment_hash)


async def test_G02_another_preimage_is_no_proof_of_payment(ground: Ground) -> None:
    made = await ground.invoice()
    ground.theirs.lies = [(r'(reimage": ?")[0-9a-f]{64}', r"\g<1>" + "5a" * 32)]
    assert (await ground.pay(made)).state == "pending"
    with pytest.raises(RailUnavailable):
        await ground.payer.payment(made.payment_hash)
    ground.theirs.lies = []
    assert (await ground.payer.payment(made.payment_hash)).state == "succeeded"


@pytest.mark.parametrize("fault", BAD)
async def test_a_payment_that_may_not_have_arrived_is_pending(ground: Ground, fault: str) -> None:
    made, before = await ground.invoice(), await balance_of(ground.nodes.payer)
    ground.theirs.faults = ground.api.failing(ground.api.pay, fault)
    assert (await ground.pay(made, seconds=0.3)).state == "pending"
    assert (await ground.payer.payment(made.payment_hash)).state == "unknown"
    assert await balance_of(ground.nodes.payer) == before
    ground.theirs.faults = {}
    assert (await ground.pay(made)).state == "succeeded"


async def test_a_payment_whose_answer_is_lost_is_looked_up(ground: Ground) -> None:
    made, before = await ground.invoice(), await balance_of(ground.nodes.seller)
    ground.theirs.faults = ground.api.failing(ground.api.pay, "lost")
    state = await ground.pay(made, seconds=1)
    assert state.state == "succeeded"
    assert state == await ground.payer.payment(made.payment_hash)
    assert await balance_of(ground.nodes.seller) - before == AMOUNT


async def test_a_payment_is_pending_when_the_node_can_not_be_asked_either(ground: Ground) -> None:
    made, before = await ground.invoice(), await balance_of(ground.nodes.seller)
    ground.theirs.faults = ground.api.failing(ground.api.payment, "garbage") | {ground.api.pay: "lost"}
    assert (await ground.pay(made, seconds=1)).state == "pending"
    ground.theirs.faults = {}
    assert (await ground.payer.payment(made.payment_hash)).state == "succeeded"
    assert (await ground.pay(made)).state == "succeeded"
    assert await balance_of(ground.nodes.seller) - before == AMOUNT


async def test_a_key_that_may_not_pay_sends_nothing(ground: Ground) -> None:
    limited = ground.api.adapter(ground.url, ground.api.limited_key, 2)
    await limited.start()
    made, before = await ground.invoice(), await balance_of(ground.nodes.payer)
    with pytest.raises(RailUnavailable):
        await limited.pay(made.bolt11, max_fee=FEE, timeout_seconds=2)
    await limited.close()
    assert await balance_of(ground.nodes.payer) == before


async def test_a_node_that_is_gone_was_sent_nothing(ground: Ground) -> None:
    made = await ground.invoice()
    with serving(ground.api.server(RealNode(ground.nodes.payer)), lifespan=False) as url:
        node = ground.api.adapter(url, ground.api.key, 2)
        await node.start()
    with pytest.raises(RailUnavailable):
        await node.pay(made.bolt11, max_fee=FEE, timeout_seconds=1)
    with pytest.raises(RailUnavailable):
        await node.payment(made.payment_hash)
    with pytest.raises(RailUnavailable):
        await node.create(AMOUNT, expiry_seconds=60)
    with pytest.raises(RailUnavailable):
        await anext(node.subscribe())
    await node.close()


async def test_a_fee_above_the_limit_is_not_risked(ground: Ground) -> None:
    """Core Lightning keeps to the limit itself; here, where both are neighbours, its fee is nothing."""
    made = await ground.invoice()
    state = await ground.pay(made, fee=1000)
    if ground.api.name == "cln":
        assert (state.state, state.fee) == ("succeeded", 0)
        return
    assert (state.state, state.reason) == ("failed", "fee_too_high")
    assert not ground.was_paid()


async def test_G05_an_invoice_is_dead_only_when_no_part_can_complete_it(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await ground.invoice(expiry_seconds=60)
    late = made.expires_at + 1
    if ground.api.name != "cln":  # which says itself that one has expired
        monkeypatch.setattr(time, "time", lambda: late)
        assert await ground.seller.look_up(made.payment_hash) == InvoiceState("open")
        monkeypatch.setattr(time, "time", lambda: late + 130)
        if ground.api.name == "phoenixd":
            ground.ours.lies = [(r'("isExpired": ?)false', r"\1true")]
        assert await ground.seller.look_up(made.payment_hash) == InvoiceState("dead")


async def test_a_try_that_may_go_on_has_not_failed(lightning: LightningDevnet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Core Lightning's parts have all failed, but its command may still be at work, as its answer was lost."""
    server = Clnrest(RealNode(lightning.payer))
    with serving(Clnrest(RealNode(lightning.seller)), lifespan=False) as ours, serving(server, lifespan=False) as url:
        seller, payer = CoreLightning(ours, clnrest.RUNE), CoreLightning(url, clnrest.RUNE)
        await seller.start()
        await payer.start()
        made = await seller.create(AMOUNT, expiry_seconds=300)
        server.faults = {"/v1/xpay": "lost"}
        async with holding(lightning.seller):
            assert (await payer.pay(made.bolt11, max_fee=0, timeout_seconds=0.3)).state == "pending"
            await cancel(lightning.seller, made.payment_hash)
        assert (await server.node.payment(made.payment_hash) or {})["status"] == "FAILED"
        assert (await payer.payment(made.payment_hash)).state == "pending"
        over = time.time() + cln_module.RETRY_MAX + 61
        monkeypatch.setattr(time, "time", lambda: over)
        assert (await payer.payment(made.payment_hash)).state == "failed"
        monkeypatch.undo()
        server.faults = {}
        assert (await payer.pay(made.bolt11, max_fee=0, timeout_seconds=2)).state == "failed"
        assert (await payer.payment(made.payment_hash)).state == "failed"
        await seller.close()
        await payer.close()


async def test_core_lightning_without_a_command_to_pay_was_sent_nothing(
    lightning: LightningDevnet, standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, url = standing.of(Clnrest, lightning.payer)
    node = CoreLightning(url, clnrest.RUNE)
    await node.start()
    made = await RealNode(lightning.seller).add(AMOUNT, "a call", 300)
    assert isinstance(server, Clnrest)
    for command in ("xpay", "pay"):
        monkeypatch.delitem(server.commands, command)
    with pytest.raises(RailUnavailable):
        await node.pay(made["payment_request"], max_fee=FEE, timeout_seconds=2)
    await node.close()


@pytest.mark.parametrize("memo", ["a\x01call", "\x00", "a\ud800call"])
async def test_no_memo_keeps_an_invoice_from_being_made(ground: Ground, memo: str) -> None:
    assert (await ground.seller.create(AMOUNT, memo=memo, expiry_seconds=60)).amount == AMOUNT


async def test_what_phoenixd_keeps_for_its_channel_was_paid_all_the_same(lightning: LightningDevnet) -> None:
    server = PhoenixdServer(RealNode(lightning.seller))
    server.liquidity = 3_500
    with serving(server, lifespan=False) as url:
        node = Phoenixd(url, phoenixd.LIMITED_PASSWORD)
        await node.start()
        made = await node.create(AMOUNT, expiry_seconds=300)
        await RealNode(lightning.payer).send(made.bolt11, FEE, 10)
        assert await node.look_up(made.payment_hash) == InvoiceState("settled", AMOUNT)
        await node.close()


async def test_a_key_that_lnbits_no_longer_knows_says_nothing_of_the_wallet(
    lightning: LightningDevnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LNbits tells anybody who knows a hash whether it is paid: that is not the wallet's own word."""
    with serving(LNbitsServer(RealNode(lightning.seller)), lifespan=False) as url:
        node = LNbits(url, lnbits.INVOICE_KEY)
        await node.start()
        made = await node.create(AMOUNT, expiry_seconds=300)
        monkeypatch.setattr(lnbits, "INVOICE_KEY", "0" * 32)
        with pytest.raises(RailUnavailable):
            await node.look_up(made.payment_hash)
        await node.close()


async def test_a_payment_that_lnbits_leaves_to_itself_is_pending(lightning: LightningDevnet) -> None:
    server = LNbitsServer(RealNode(lightning.payer))
    server.wait_seconds = 0.2
    with (
        serving(LNbitsServer(RealNode(lightning.seller)), lifespan=False) as ours,
        serving(server, lifespan=False) as url,
    ):
        seller, payer = LNbits(ours, lnbits.INVOICE_KEY), LNbits(url, lnbits.ADMIN_KEY)
        await seller.start()
        await payer.start()
        made = await seller.create(AMOUNT, expiry_seconds=300)
        async with holding(lightning.seller):
            assert (await payer.pay(made.bolt11, max_fee=FEE, timeout_seconds=5)).state == "pending"
        assert (await payer.payment(made.payment_hash)).state == "succeeded"
        await seller.close()
        await payer.close()
