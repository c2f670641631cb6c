"""A chain of its own and two LND nodes on it with a channel, built by ``make test-go``: all real, all on loopback."""

from __future__ import annotations

import contextlib
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx

from tests.support.serving import free_port
from x402kit.devnet import DevnetError
from x402kit.devnet.process import Server
from x402kit.model import Json

__all__ = ["BIN", "Chain", "Node", "Pair", "running_pair", "until"]

T = TypeVar("T")
BIN: Final = Path(__file__).parents[2] / ".venv-go" / "bin"
USER: Final = ("x402kit", "x402kit")
NOBODY: Final = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080"
"""Where the first block's coins go: to the key 1."""
CHANNEL_SATS: Final = 10_000_000
PUSHED_SATS: Final = 4_000_000
BLOCKS: Final = 440
"""So many until coins can be spent, and SegWit is active on regtest: three windows of 144."""
WAIT_SECONDS: Final = 120


def until(what: str, ask: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
    """Ask again until it is so; what can't be asked yet is not yet so."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError, ssl.SSLError, FileNotFoundError):
            if ask():
                return
        time.sleep(0.1)
    raise AssertionError(f"waited in vain: {what}")


def started(make: Callable[[], T]) -> T:
    """Somebody else may take a free port before the server that it was meant for."""
    for _ in range(2):
        with contextlib.suppress(DevnetError):
            return make()
    return make()


class Chain:
    """Two btcd nodes: the one that the Lightning nodes look at, and the one that mines, for whom it is told."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self.cert = place / "rpc.cert"
        self._server, self.rpc_port, self._peer_port = started(self._looking)
        self._miner, self._miner_port = started(lambda: self._mining(NOBODY))

    def _looking(self) -> tuple[Server, int, int]:
        rpc, peer = free_port(), free_port()
        return self._btcd("backend", rpc, f"--rpccert={self.cert}", f"--listen=127.0.0.1:{peer}"), rpc, peer

    def _btcd(self, name: str, rpc_port: int, *options: str) -> Server:
        home = self._place / name
        home.mkdir(exist_ok=True)
        (home / "btcd.conf").touch()
        command = (
            str(BIN / "btcd"),
            "--regtest",
            "--txindex",
            "--nodnsseed",
            f"--configfile={home / 'btcd.conf'}",
            f"--datadir={home / 'data'}",
            f"--logdir={home / 'logs'}",
            f"--rpckey={home / 'rpc.key'}",
            f"--rpclisten=127.0.0.1:{rpc_port}",
            f"--rpcuser={USER[0]}",
            f"--rpcpass={USER[1]}",
            *options,
        )
        return Server(command, ready="RPC server listening", env={"HOME": str(home)})

    def _mining(self, address: str) -> tuple[Server, int]:
        port = free_port()
        options = (f"--miningaddr={address}", f"--connect=127.0.0.1:{self._peer_port}", "--notls", "--nolisten")
        return self._btcd("miner", port, *options), port

    def mine(self, blocks: int) -> None:
        """The Lightning nodes see them a little later."""
        self._ask_miner("generate", blocks)

    def mine_the_next(self, blocks: int) -> None:
        """With a transaction that is on its way to the miner in the first of them."""
        until("a transaction", lambda: bool(self._ask_miner("getrawmempool")))
        self.mine(blocks)

    def _ask_miner(self, method: str, *params: int) -> Any:
        asked = {"jsonrpc": "1.0", "id": 1, "method": method, "params": params}
        url = f"http://127.0.0.1:{self._miner_port}"
        said = httpx.post(url, json=asked, auth=USER, timeout=60, trust_env=False).json()
        assert said["error"] is None, said
        return said["result"]

    def mine_for(self, address: str, blocks: int) -> None:
        """From now on for another one."""
        self._miner.stop()
        self._miner, self._miner_port = started(lambda: self._mining(address))
        self.mine(blocks)

    def stop(self) -> None:
        self._miner.stop()
        self._server.stop()


@dataclass
class Node:
    """An LND node. ``url`` is that of its REST service, behind TLS with a certificate that the node made itself."""

    place: Path
    server: Server
    rest_port: int
    rpc_port: int
    peer_port: int

    @classmethod
    def start(cls, place: Path, chain: Chain) -> Node:
        place.mkdir(exist_ok=True)
        rest, rpc, peer = free_port(), free_port(), free_port()
        command = (
            str(BIN / "lnd"),
            f"--lnddir={place}",
            "--bitcoin.regtest",
            "--bitcoin.node=btcd",
            f"--btcd.rpchost=127.0.0.1:{chain.rpc_port}",
            f"--btcd.rpcuser={USER[0]}",
            f"--btcd.rpcpass={USER[1]}",
            f"--btcd.rpccert={chain.cert}",
            f"--restlisten=127.0.0.1:{rest}",
            f"--rpclisten=127.0.0.1:{rpc}",
            f"--listen=127.0.0.1:{peer}",
            "--noseedbackup",
            "--nobootstrap",
            "--trickledelay=50",
        )
        server = Server(command, ready="RPC server listening on", env={"HOME": str(place)})
        return cls(place, server, rest, rpc, peer)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.rest_port}"

    @property
    def cert(self) -> Path:
        return self.place / "tls.cert"

    @property
    def macaroons(self) -> Path:
        """The folder where LND puts its own."""
        return self.place / "data" / "chain" / "bitcoin" / "regtest"

    @property
    def admin(self) -> Path:
        return self.macaroons / "admin.macaroon"

    @property
    def invoices(self) -> Path:
        return self.macaroons / "invoice.macaroon"

    def ask(self, method: str, path: str, **body: Any) -> Json:
        headers = {"Grpc-Metadata-macaroon": self.admin.read_bytes().hex()}
        context = ssl.create_default_context(cafile=self.cert)
        with httpx.Client(verify=context, headers=headers, timeout=60, trust_env=False) as client:
            answer = client.request(method, self.url + path, json=body or None)
        if answer.is_error:
            raise httpx.HTTPError(f"{path}: {answer.text}")
        found: Json = answer.json()
        return found

    @property
    def pubkey(self) -> str:
        found: str = self.ask("GET", "/v1/getinfo")["identity_pubkey"]
        return found

    @property
    def balance(self) -> int:
        """Msat on its side of the channel."""
        return int(self.ask("GET", "/v1/balance/channels")["local_balance"]["msat"])

    def invoice(self, payment_hash: str) -> Json:
        return self.ask("GET", f"/v1/invoice/{payment_hash}")

    def stop(self) -> None:
        self.server.terminate(20)
        self.server.stop()


@dataclass(frozen=True)
class Pair:
    """The channel is the payer's, who gave the seller some of it."""

    chain: Chain
    seller: Node
    payer: Node

    def open_channel(self) -> None:
        self.chain.mine(1)  # a node on a chain whose last block is old waits for a newer one
        until(
            "both see the chain", lambda: all(each.ask("GET", "/v1/getinfo")["synced_to_chain"] for each in self.both)
        )
        self.chain.mine_for(self.payer.ask("GET", "/v1/newaddress")["address"], BLOCKS)
        until("coins", lambda: int(self.payer.ask("GET", "/v1/balance/blockchain")["confirmed_balance"]) > CHANNEL_SATS)
        until("the tip", lambda: all(each.ask("GET", "/v1/getinfo")["block_height"] > BLOCKS for each in self.both))
        there = {"pubkey": self.seller.pubkey, "host": f"127.0.0.1:{self.seller.peer_port}"}
        self.payer.ask("POST", "/v1/peers", addr=there, timeout="10")
        wanted = {
            "node_pubkey": b64encode(bytes.fromhex(there["pubkey"])).decode(),
            "local_funding_amount": str(CHANNEL_SATS),
            "push_sat": str(PUSHED_SATS),
            "sat_per_vbyte": "2",
        }
        # Both must have seen all blocks, and the other: until then it is refused.
        until("an open channel", lambda: bool(self.payer.ask("POST", "/v1/channels", **wanted)))
        self.chain.mine_the_next(6)
        until("the channel", lambda: all(each.ask("GET", "/v1/getinfo")["num_active_channels"] for each in self.both))
        until("a payment", self._pays)

    def _pays(self) -> bool:
        """A channel is called active a little before it carries anything."""
        bolt11 = self.seller.ask("POST", "/v1/invoices", value="1")["payment_request"]
        wanted = {"payment_request": bolt11, "timeout_seconds": 10, "no_inflight_updates": True}
        said = self.payer.ask("POST", "/v2/router/send", **wanted)
        return bool(said["result"]["status"] == "SUCCEEDED")

    @property
    def both(self) -> tuple[Node, Node]:
        return self.seller, self.payer


@contextlib.contextmanager
def running_pair(place: Path) -> Generator[Pair]:
    """Until the block ends; half a minute to start."""
    with contextlib.ExitStack() as stack:
        chain = Chain(place)
        stack.callback(chain.stop)
        nodes: list[Node] = []
        for name in ("seller", "payer"):
            nodes.append(started(partial(Node.start, place / name, chain)))
            stack.callback(nodes[-1].stop)
        pair = Pair(chain, *nodes)
        pair.open_channel()
        yield pair
