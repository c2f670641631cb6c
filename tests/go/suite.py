"""Against programs in Go, all real: our adapter on two LND nodes, our server paid from one, our client paying aperture.

``make test-go`` builds them and runs this; ``make test`` does not. Where ``lnget`` is on the PATH, it pays our server.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import shutil
import ssl
import subprocess
from collections.abc import AsyncGenerator, Generator
from hashlib import sha256
from pathlib import Path
from typing import cast

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tests.go.nodes import BIN, Node, Pair, running_pair, until
from tests.support import lightning_contract as contract
from tests.support.clients import KINDS, request
from tests.support.lightning_shop import BITCOIN_PRICE, PRICE_MSAT, LightningShop, lightning_shop
from tests.support.lightning_shop import shop as shop
from tests.support.peers import Front, ask
from tests.support.serving import free_port, serving
from x402kit.client import Limits, Payer, payment_of
from x402kit.devnet import LightningDevnet, LightningNode
from x402kit.devnet.process import Server
from x402kit.errors import ConfigError
from x402kit.model import Json
from x402kit.networks import FixedPrice, Lnd
from x402kit.networks.lightning import Lightning
from x402kit.networks.lightning_port import REGTEST, InvoiceState
from x402kit.protocols.bolt11 import decode

LNGET = shutil.which("lnget")
SATS = PRICE_MSAT // 1000


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Generator[Pair]:
    with running_pair(tmp_path_factory.mktemp("chain")) as made:
        yield made


# The adapter of LND


class Plain:
    """A node's REST service without TLS, for the hands of the tests; the adapters go to the node itself."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._context = ssl.create_default_context(cafile=node.cert)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = Request(scope, receive)
        headers = {"Grpc-Metadata-macaroon": asked.headers["grpc-metadata-macaroon"]}
        url, body = self._node.url + asked.url.path, await asked.body()
        async with httpx.AsyncClient(verify=self._context, trust_env=False) as client:
            answer = await client.request(asked.method, url, headers=headers, content=body)
            # A payment is settled before its channel is: what is still on its way belongs to nobody yet.
            while asked.url.path == "/v1/balance/channels" and _on_the_way(answer.json()):
                await asyncio.sleep(0.05)
                answer = await client.request(asked.method, url, headers=headers, content=body)
        await Response(answer.content, answer.status_code)(scope, receive, send)


def _on_the_way(balance: Json) -> bool:
    names = ("unsettled_local_balance", "unsettled_remote_balance")
    return any(int(balance[name]["msat"]) for name in names)


class Nodes:
    """The pair as the contract of the ports knows the devnet's nodes."""

    def __init__(self, pair: Pair, seller_url: str, payer_url: str) -> None:
        self.seller, self.payer = (
            LightningNode(url, node.pubkey, node.admin.read_bytes().hex(), node.invoices.read_bytes().hex())
            for node, url in ((pair.seller, seller_url), (pair.payer, payer_url))
        )


@pytest.fixture(scope="session")
def nodes(pair: Pair) -> Generator[Nodes]:
    with (
        serving(Plain(pair.seller), lifespan=False) as seller,
        serving(Plain(pair.payer), lifespan=False) as payer,
    ):
        yield Nodes(pair, seller, payer)


@pytest.fixture
async def ground(pair: Pair, nodes: Nodes) -> AsyncGenerator[contract.Ground]:
    """The seller's macaroon is LND's own for invoices, a file as LND writes it."""
    seller = Lnd(pair.seller.url, pair.seller.invoices, pair.seller.cert)
    payer = Lnd(pair.payer.url, pair.payer.admin, pair.payer.cert)
    await seller.start()
    await payer.start()
    yield contract.Ground(seller, payer, cast(LightningDevnet, nodes))
    await seller.close()
    await payer.close()


BY_THE_DEVNET = (
    # What these do behind the adapter's back LND has no call for; those with a hold invoice stand in for them.
    contract.a_held_payment_is_pending_and_not_settled,
    contract.a_payment_that_the_seller_sends_back_has_failed,
    contract.a_part_of_a_payment_does_not_settle,
)
CHECKS = tuple(check for check in contract.CHECKS if check not in BY_THE_DEVNET)


@pytest.mark.parametrize("check", CHECKS, ids=contract.named)
async def test_lnd_keeps_the_contract(check: contract.Check, ground: contract.Ground) -> None:
    await check(ground)


def held(pair: Pair) -> tuple[bytes, str]:
    """A preimage, and the invoice of the seller's that waits for it to be told."""
    preimage = secrets.token_bytes(32)
    wanted = {"hash": base64.b64encode(sha256(preimage).digest()).decode(), "value_msat": "12000", "expiry": "300"}
    made = pair.seller.ask("POST", "/v2/invoices/hodl", **wanted)
    return preimage, made["payment_request"]


async def test_G03_a_held_payment_is_pending_until_the_preimage_is_told(pair: Pair, ground: contract.Ground) -> None:
    preimage, bolt11 = held(pair)
    payment_hash = sha256(preimage).hexdigest()
    assert decode(bolt11).payment_hash == payment_hash
    assert (await ground.pay(bolt11, timeout_seconds=1)).state == "pending"
    assert (await ground.payer.payment(payment_hash)).state == "pending"
    assert await ground.seller.look_up(payment_hash) == InvoiceState("accepted")
    pair.seller.ask("POST", "/v2/invoices/settle", preimage=base64.b64encode(preimage).decode())
    paid = await contract.until(lambda: ground.payer.payment(payment_hash), lambda found: found.state != "pending")
    assert (paid.state, paid.preimage) == ("succeeded", preimage.hex())
    assert await ground.seller.look_up(payment_hash) == InvoiceState("settled", 12_000)


async def test_G03_a_held_payment_that_is_sent_back_has_failed(pair: Pair, ground: contract.Ground) -> None:
    preimage, bolt11 = held(pair)
    payment_hash, before = sha256(preimage).hexdigest(), pair.payer.balance
    assert (await ground.pay(bolt11, timeout_seconds=1)).state == "pending"
    sent_back = base64.b64encode(bytes.fromhex(payment_hash)).decode()
    pair.seller.ask("POST", "/v2/invoices/cancel", payment_hash=sent_back)
    await contract.until(lambda: ground.payer.payment(payment_hash), lambda found: found.state == "failed")
    assert await ground.seller.look_up(payment_hash) == InvoiceState("dead")
    assert pair.payer.balance == before


async def test_another_nodes_certificate_is_refused(pair: Pair) -> None:
    node = Lnd(pair.seller.url, pair.seller.invoices, pair.payer.cert)
    with pytest.raises(ConfigError):
        await node.start()


async def test_another_nodes_macaroon_is_refused(pair: Pair) -> None:
    node = Lnd(pair.seller.url, pair.payer.invoices, pair.seller.cert)
    with pytest.raises(ConfigError):
        await node.start()


# Our server and our client


@pytest.fixture(scope="module")
def running(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Generator[LightningShop]:
    node = Lnd(pair.seller.url, pair.seller.invoices, pair.seller.cert)
    rail = Lightning(node, price=FixedPrice(BITCOIN_PRICE), network=REGTEST)
    with lightning_shop([rail], tmp_path_factory.mktemp("shop")) as shop:
        yield shop


@pytest.fixture
def paying(pair: Pair) -> Payer:
    node = Lnd(pair.payer.url, pair.payer.admin, pair.payer.cert)
    limits = Limits(per_call="$0.05")
    return Payer(lightning=node, btc_usd=BITCOIN_PRICE, limits=limits, allow_insecure=True, backoff=0)


@pytest.mark.parametrize("kind", KINDS)
def test_our_clients_pay_our_server(pair: Pair, shop: LightningShop, paying: Payer, kind: str) -> None:
    before = pair.seller.balance
    answer = request(paying, kind, "GET", shop.url + "/weather")
    assert (answer.status_code, answer.json()) == (200, {"weather": "sunny"})
    info = payment_of(answer)
    assert info is not None
    assert (info.verified, info.problem, info.amount) == (True, "", PRICE_MSAT)
    assert pair.seller.invoice(info.reference)["state"] == "SETTLED"
    until("the money", lambda: pair.seller.balance - before == PRICE_MSAT)


@pytest.mark.parametrize("call", ["fetch402", "fetchWithL402"])
def test_another_client_pays_our_server(pair: Pair, shop: LightningShop, call: str) -> None:
    node = json.dumps({"url": pair.payer.url, "macaroon": pair.payer.admin.read_bytes().hex()})
    task = {"url": shop.url + "/weather", "call": call}
    said = ask("alby.mjs", task, PEER_NODE=node, NODE_EXTRA_CA_CERTS=str(pair.payer.cert))
    assert (said["status"], said["body"], shop.runs) == (200, {"weather": "sunny"}, ["weather"])


class Goods:
    """What stands behind aperture."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.app = Starlette(routes=[Route("/{path:path}", self.answer)])

    async def answer(self, request: Request) -> JSONResponse:
        self.seen.append(request.url.path)
        return JSONResponse({"weather": "sunny"})


SERVICE = {"hostregexp": "^127.0.0.1.*$", "protocol": "http", "auth": "on", "price": SATS}
"""Of aperture's configuration, which is YAML, and JSON is that too."""


@pytest.fixture(scope="module")
def aperture(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[str, Goods]]:
    place, port, goods = tmp_path_factory.mktemp("aperture"), free_port(), Goods()
    with serving(goods.app) as behind:
        address = behind.partition("//")[2]
        schemes = ("l402", "mpp", "l402+mpp")
        services = [
            {**SERVICE, "name": f"s{n}", "address": address, "pathregexp": f"^/{n}/.*$", "authscheme": scheme}
            for n, scheme in enumerate(schemes)
        ]
        node = pair.seller
        wanted = {
            "listenaddr": f"127.0.0.1:{port}",
            "insecure": True,
            "servestatic": False,
            "debuglevel": "info",
            "basedir": str(place),
            "dbbackend": "sqlite",
            "authenticator": {
                "network": "regtest",
                "lndhost": f"127.0.0.1:{node.rpc_port}",
                "tlspath": str(node.cert),
                "macdir": str(node.macaroons),
                "enablempp": True,
                "mpprealm": "peer.example",
            },
            "services": services,
        }
        file = place / "aperture.yaml"
        file.write_text(json.dumps(wanted))
        command = (str(BIN / "aperture"), f"--configfile={file}", f"--sqlite.dbfile={place / 'aperture.db'}")
        server = Server(command, ready="Starting the server", env={"HOME": str(place)})
        try:
            url = f"http://127.0.0.1:{port}"
            until("aperture", lambda: httpx.get(url + "/0/weather", trust_env=False).status_code == 402)
            yield url, goods
        finally:
            server.terminate(10)
            server.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_our_clients_pay_aperture_by_l402_and_use_the_token_again(
    pair: Pair, aperture: tuple[str, Goods], paying: Payer, kind: str
) -> None:
    url, goods = aperture
    goods.seen.clear()
    found: list[tuple[str, int]] = []
    for _ in range(3):
        answer = request(paying, kind, "GET", url + "/0/weather")
        assert (answer.status_code, answer.json()) == (200, {"weather": "sunny"})
        info = payment_of(answer)
        assert info is not None
        assert (info.verified, info.problem) == (True, "")
        found.append((info.source, info.amount))
    assert found == [("payment", PRICE_MSAT), ("token", 0), ("token", 0)]
    (row,) = paying.payments()
    assert (pair.seller.invoice(row.reference)["state"], goods.seen) == ("SETTLED", ["/0/weather"] * 3)


class PaymentAlone(Front):
    """Takes L402 out of challenges: aperture offers it even where it then refuses it."""

    async def _forward(self, scope: Scope, body: bytes) -> httpx.Response:
        answer = await super()._forward(scope, body)
        name = b"www-authenticate"
        kept = [(k, v) for k, v in answer.headers.raw if k.lower() != name or v.startswith(b"Payment ")]
        return httpx.Response(answer.status_code, headers=kept, content=answer.content)


def test_our_client_pays_aperture_by_the_payment_scheme(aperture: tuple[str, Goods], paying: Payer) -> None:
    url, goods = aperture
    goods.seen.clear()
    references: set[str] = set()
    with serving(PaymentAlone(url), lifespan=False) as front:
        for _ in range(2):
            answer = request(paying, "httpx", "GET", front + "/1/weather")
            assert (answer.status_code, answer.json()) == (200, {"weather": "sunny"})
            info = payment_of(answer)
            assert info is not None
            assert (info.verified, info.problem, info.source, info.amount) == (True, "", "payment", PRICE_MSAT)
            references.add(info.reference)
    assert (len(references), goods.seen) == (2, ["/1/weather"] * 2)


def test_our_client_pays_aperture_where_it_offers_both(aperture: tuple[str, Goods], paying: Payer) -> None:
    url, goods = aperture
    goods.seen.clear()
    for _ in range(2):
        assert request(paying, "httpx", "GET", url + "/2/weather").status_code == 200
    assert ([row.state for row in paying.payments()], goods.seen) == (["accepted"], ["/2/weather"] * 2)


# lnget is not to be had from the module proxy: who has it, has it pay here too.
if LNGET is not None:

    @pytest.mark.parametrize(("scheme", "runs"), [("l402", 1), ("payment", 2)])
    def test_lnget_pays_our_server(pair: Pair, shop: LightningShop, tmp_path: Path, scheme: str, runs: int) -> None:
        """It shows its token again for the same URL, and is given the same answer again."""
        assert LNGET is not None
        node = {
            "HOME": str(tmp_path),
            "LNGET_LN_MODE": "lnd",
            "LNGET_LN_LND_HOST": f"127.0.0.1:{pair.payer.rpc_port}",
            "LNGET_LN_LND_TLS_CERT": str(pair.payer.cert),
            "LNGET_LN_LND_MACAROON": str(pair.payer.admin),
            "LNGET_LN_LND_NETWORK": "regtest",
        }
        before = pair.seller.balance
        asked = (LNGET, "--quiet", "--prefer-scheme", scheme, "--output", "-", shop.url + "/weather")
        for _ in range(2):
            said = subprocess.run(asked, env=node, capture_output=True, text=True, timeout=60, check=False)
            assert (said.returncode, json.loads(said.stdout)) == (0, {"weather": "sunny"}), said.stderr
        until("the money", lambda: pair.seller.balance - before == runs * PRICE_MSAT)
        assert shop.runs == ["weather"] * runs
