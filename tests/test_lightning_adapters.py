"""The adapters of Core Lightning, phoenixd, LNbits and Nostr Wallet Connect: what the ports promise of each.

Each talks to a server that behaves by its product's API description, and that stands on one of the devnet's nodes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest

from tests.support.lightning_contract import (
    CHECKS,
    Check,
    Ground,
    a_payment_settles_its_invoice,
    an_unknown_payment_is_unknown,
    named,
    the_network_is_known,
)
from tests.support.lightning_servers.clnrest import INVOICE_RUNE, RUNE, Clnrest
from tests.support.lightning_servers.lnbits import ADMIN_KEY, INVOICE_KEY, LNbitsServer
from tests.support.lightning_servers.node import Product, RealNode
from tests.support.lightning_servers.nwc import nwc_wallet
from tests.support.lightning_servers.phoenixd import LIMITED_PASSWORD, PASSWORD, PhoenixdServer
from tests.support.lightning_servers.standing import Standing
from x402kit.devnet import LightningDevnet
from x402kit.networks import CoreLightning, LNbits, NostrWalletConnect, Phoenixd
from x402kit.networks.lightning_nodes import LightningNode

PRODUCTS = ("cln", "phoenixd", "lnbits", "nwc")
OLDER = ("old cln", "older nwc")
MONEY = (the_network_is_known, a_payment_settles_its_invoice, an_unknown_payment_is_unknown)
Pair = tuple[LightningNode, LightningNode]


@pytest.fixture(scope="module")
def standing() -> Iterator[Standing]:
    with Standing() as servers:
        yield servers


def rest(product: str, standing: Standing, nodes: LightningDevnet) -> Pair:
    kind = {"cln": Clnrest, "old cln": old_clnrest, "phoenixd": PhoenixdServer, "lnbits": LNbitsServer}[product]
    (_, ours), (_, theirs) = (standing.of(kind, node) for node in (nodes.seller, nodes.payer))
    if product == "phoenixd":
        return Phoenixd(ours, LIMITED_PASSWORD, poll_seconds=0.1), Phoenixd(theirs, PASSWORD)
    if product == "lnbits":
        return LNbits(ours, INVOICE_KEY, poll_seconds=0.1), LNbits(theirs, ADMIN_KEY)
    return CoreLightning(ours, INVOICE_RUNE), CoreLightning(theirs, RUNE)


def old_clnrest(node: RealNode) -> Product:
    return Clnrest(node, old=True)


async def nostr(stack: AsyncExitStack, nodes: LightningDevnet, *, older: bool) -> Pair:
    ours = await stack.enter_async_context(nwc_wallet(RealNode(nodes.seller)))
    theirs = await stack.enter_async_context(nwc_wallet(RealNode(nodes.payer)))
    ours.named = theirs.named = ours.stated = theirs.stated = not older
    return NostrWalletConnect(ours.limited_uri, poll_seconds=0.2), NostrWalletConnect(theirs.uri)


@pytest.fixture
async def ground(
    request: pytest.FixtureRequest, lightning: LightningDevnet, standing: Standing
) -> AsyncIterator[Ground]:
    """The seller with a key for invoices alone, as a seller should have it."""
    product: str = request.param
    async with AsyncExitStack() as stack:
        if product.endswith("nwc"):
            seller, payer = await nostr(stack, lightning, older=product.startswith("older"))
        else:
            seller, payer = rest(product, standing, lightning)
        for node in (seller, payer):
            await node.start()
            stack.push_async_callback(node.close)
        yield Ground(seller, payer, lightning, holds=product == "nwc", cancels=product != "phoenixd")


@pytest.mark.parametrize("ground", PRODUCTS, indirect=True)
@pytest.mark.parametrize("check", CHECKS, ids=named)
async def test_an_adapter_keeps_to_the_ports(check: Check, ground: Ground) -> None:
    await check(ground)


@pytest.mark.parametrize("ground", OLDER, indirect=True)
@pytest.mark.parametrize("check", MONEY, ids=named)
async def test_older_versions_are_understood(check: Check, ground: Ground) -> None:
    await check(ground)
