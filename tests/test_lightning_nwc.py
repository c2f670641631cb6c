"""Nostr Wallet Connect when the wallet, its relay or the connection's rights fail."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator

import pytest
from nostr_sdk import Keys

from tests.support.lightning import balance_of
from tests.support.lightning_servers.node import RealNode
from tests.support.lightning_servers.nwc import NwcWallet, nwc_wallet
from x402kit.devnet import LightningDevnet
from x402kit.errors import ConfigError, MissingExtra, RailUnavailable
from x402kit.networks import NostrWalletConnect
from x402kit.networks.lightning_port import InvoiceState, NewInvoice
from x402kit.networks.lightning_reading import made

AMOUNT = 12_000
FEE = 20_000
UNKNOWN = "5a" * 32


@pytest.fixture
async def wallet(lightning: LightningDevnet) -> AsyncIterator[NwcWallet]:
    async with nwc_wallet(RealNode(lightning.payer)) as made:
        yield made


@pytest.fixture
async def node(wallet: NwcWallet) -> AsyncIterator[NostrWalletConnect]:
    node = NostrWalletConnect(wallet.uri)
    await node.start()
    yield node
    await node.close()


@pytest.fixture
async def invoice(lightning: LightningDevnet) -> NewInvoice:
    row = await RealNode(lightning.seller).add(AMOUNT, "a call", 300)
    return made(row["payment_request"], AMOUNT, "")


async def pay(node: NostrWalletConnect, invoice: NewInvoice, seconds: float = 10, fee: int = FEE) -> tuple[str, str]:
    state = await node.pay(invoice.bolt11, max_fee=fee, timeout_seconds=seconds)
    return state.state, state.reason


async def ended(node: NostrWalletConnect) -> None:
    """The connection's end has been noticed: a relay may answer yet while it shuts down."""
    with contextlib.suppress(RailUnavailable):
        while True:
            await node.look_up(UNKNOWN)


async def test_I11_a_uri_that_can_not_be_read_is_not_shown() -> None:
    secret = "5ec2e7" * 10 + "5ec2"
    for uri in (
        "",
        "https://example.com",
        f"nostr+walletconnect://{secret}",
        f"nostr+walletconnect://x?secret={secret}",
    ):
        with pytest.raises(ConfigError) as told:
            NostrWalletConnect(uri)
        assert secret not in str(told.value)


async def test_I11_nothing_shows_the_connections_secret(wallet: NwcWallet) -> None:
    secret = wallet.uri.partition("secret=")[2][:64]
    assert len(secret) == 64
    made = NostrWalletConnect(wallet.uri)
    assert secret not in f"{made!r} {made}"
    wallet.faults = {"get_info": "UNAUTHORIZED"}
    with pytest.raises(ConfigError, match="refuses this connection") as told:
        await made.start()
    assert secret not in f"{told.value!r}"
    assert made.network == ""


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nostr_sdk", None)
    with pytest.raises(MissingExtra, match=r"x402kit-asgi\[lightning\]"):
        NostrWalletConnect("nostr+walletconnect://…")


async def test_a_wallet_that_does_not_answer_is_told_at_the_start(wallet: NwcWallet) -> None:
    wallet.faults = {"get_info": "hang"}
    with pytest.raises(ConfigError, match="does not answer"):
        await NostrWalletConnect(wallet.uri, seconds=0.5).start()


async def test_another_secret_is_no_connection(wallet: NwcWallet) -> None:
    ours, theirs = wallet.uri.partition("secret=")[2][:64], Keys.generate().secret_key().to_hex()
    with pytest.raises(ConfigError, match="refuses this connection"):
        await NostrWalletConnect(wallet.uri.replace(ours, theirs)).start()


async def test_a_connection_without_the_right_to_pay_sends_nothing(
    wallet: NwcWallet, invoice: NewInvoice, lightning: LightningDevnet
) -> None:
    before = await balance_of(lightning.payer)
    limited = NostrWalletConnect(wallet.limited_uri)
    await limited.start()
    with pytest.raises(RailUnavailable):
        await pay(limited, invoice)
    await limited.close()
    assert await balance_of(lightning.payer) == before


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("INSUFFICIENT_BALANCE", ("failed", "insufficient_balance")),
        ("QUOTA_EXCEEDED", ("failed", "quota_exceeded")),
        ("PAYMENT_FAILED", ("failed", "refused")),
        ("INTERNAL", ("pending", "no_answer")),
        ("OTHER", ("pending", "no_answer")),
        ("A_CODE_OF_THE_FUTURE", ("pending", "no_answer")),
        ("hang", ("pending", "no_answer")),
    ],
)
async def test_an_error_of_the_wallet_is_a_failure_only_where_it_says_so(
    wallet: NwcWallet, node: NostrWalletConnect, invoice: NewInvoice, code: str, outcome: tuple[str, str]
) -> None:
    wallet.faults = {"pay_invoice": code}
    assert await pay(node, invoice, seconds=0.5) == outcome
    wallet.faults = {}
    assert await pay(node, invoice) == ("succeeded", "")


@pytest.mark.parametrize("code", ["RATE_LIMITED", "NOT_IMPLEMENTED", "RESTRICTED", "UNAUTHORIZED"])
async def test_a_wallet_that_does_not_take_the_request_was_sent_nothing(
    wallet: NwcWallet, node: NostrWalletConnect, invoice: NewInvoice, code: str
) -> None:
    wallet.faults = {"pay_invoice": code}
    with pytest.raises(RailUnavailable):
        await pay(node, invoice)


async def test_a_failure_that_can_not_be_looked_up_is_not_certain(
    wallet: NwcWallet, node: NostrWalletConnect, invoice: NewInvoice
) -> None:
    """Wallets say PAYMENT_FAILED of a time-out too (NIP-47)."""
    wallet.faults = {"pay_invoice": "PAYMENT_FAILED", "lookup_invoice": "INTERNAL"}
    assert await pay(node, invoice) == ("pending", "refused")


async def test_a_payment_whose_answer_is_lost_is_looked_up(
    wallet: NwcWallet, node: NostrWalletConnect, invoice: NewInvoice
) -> None:
    wallet.faults = {"pay_invoice": "lost"}
    assert await pay(node, invoice, seconds=1) == ("succeeded", "")


async def test_a_fee_above_the_limit_is_not_risked(
    wallet: NwcWallet, node: NostrWalletConnect, invoice: NewInvoice
) -> None:
    wallet.faults = {"pay_invoice": "UNAUTHORIZED"}
    assert await pay(node, invoice, fee=9_999) == ("failed", "fee_too_high")


async def test_a_relay_that_is_gone_was_sent_nothing(
    wallet: NwcWallet, node: NostrWalletConnect, invoice: NewInvoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("x402kit.networks.nwc.CONNECT_SECONDS", 0.2)
    wallet.stop_relay()
    await ended(node)
    with pytest.raises(RailUnavailable) as told:
        await pay(node, invoice)
    assert "no relay" in told.value.detail
    with pytest.raises(RailUnavailable):
        await node.create(AMOUNT, expiry_seconds=60)
    with pytest.raises(RailUnavailable):
        await anext(node.subscribe())


async def test_an_invoice_of_a_wallet_without_states_goes_by_its_times(
    wallet: NwcWallet, node: NostrWalletConnect, lightning: LightningDevnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    wallet.stated = False
    made = await node.create(AMOUNT, expiry_seconds=60)
    assert await node.look_up(made.payment_hash) == InvoiceState("open")
    monkeypatch.setattr("x402kit.networks.nwc.time.time", lambda: made.expires_at + 121)
    assert await node.look_up(made.payment_hash) == InvoiceState("dead")
    monkeypatch.undo()
    await RealNode(lightning.seller).send(made.bolt11, FEE, 10)
    assert await node.look_up(made.payment_hash) == InvoiceState("settled", AMOUNT)


@pytest.mark.parametrize("encryption", ["nip44_v2", "nip04", ""])
async def test_each_encryption_of_the_protocol_is_spoken(lightning: LightningDevnet, encryption: str) -> None:
    async with nwc_wallet(RealNode(lightning.payer), encryption=encryption) as wallet:
        node = NostrWalletConnect(wallet.uri)
        await node.start()
        assert wallet.spoken == ({"nip44_v2"} if encryption == "nip44_v2" else {"nip04"})
        await node.close()
