"""A shop under attack: real server processes that share one ledger on the local chain, and the payers in front of them.

``Shop`` starts, kills, stops and restarts uvicorn processes (shop_server.py), signs payments, shows them, and writes
down every answer, so that invariants.py can judge from the outside: by the answers, the claims table, the chain's logs
and the lines that the handlers left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import httpx

from x402kit.devnet import EvmAccount, EvmDevnet
from x402kit.ledger.sqlite import SQLiteStore
from x402kit.model import Account, Claim, Json, PaymentRequired
from x402kit.networks.evm import Transfer, address_of, checksum
from x402kit.protocols.x402 import decode_header, encode_header, parse_payment_required

from .evm_payments import payload_of, sign
from .faulty_rpc import FaultyRpc, faulty_rpc
from .processes import FORKED
from .shop_server import Kill, Setup, serve
from .wallet_proofs import evm_wallet, header, katana

__all__ = ["Kill", "Payment", "Server", "Setup", "Shop", "Shown", "at_once", "faulty_node", "opened"]

_START_SECONDS: Final = 20.0
_EACH_ITS_OWN: Final = httpx.Limits(max_connections=None, max_keepalive_connections=0)
"""Every request has a connection of its own, as if by another caller."""


@dataclass(frozen=True)
class Payment:
    """A signed payment, and the request that it is for."""

    header: str
    method: str
    path: str
    payer: str
    nonce: str
    amount: int
    body: bytes = b""
    proof: bool = False
    """Not a payment but a wallet proof; ``nonce`` is then a name for this showing."""
    key: str = ""

    @property
    def id(self) -> str:
        """Its claim's id, without the chain and the token."""
        return f"{self.payer.lower()}:{self.nonce}"

    @property
    def headers(self) -> dict[str, str]:
        made = {"X-Sign-In-With-X" if self.proof else "PAYMENT-SIGNATURE": self.header}
        return made | ({"Idempotency-Key": self.key} if self.key else {})


@dataclass(frozen=True)
class Shown:
    """One answer to a payment that was shown. ``moved``: whether the money had moved by then."""

    payment: Payment
    status: int
    headers: httpx.Headers
    body: bytes
    moved: bool = False

    @property
    def replayed(self) -> bool:
        return "payment-replayed" in self.headers

    @property
    def fulfilled(self) -> bool:
        """The whole goods, from a run of the handler."""
        return self.status == 200 and not self.replayed

    @property
    def kept_good(self) -> bool:
        """Settled and not served: it may be shown again."""
        return self.outcome == "settled-unserved"

    @property
    def outcome(self) -> str:
        return str(self.headers.get("payment-outcome", ""))

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """One server process."""

    def __init__(self, setup: Setup) -> None:
        here, there = FORKED.Pipe(duplex=False)
        self._process: BaseProcess = FORKED.Process(target=serve, args=(setup, there), daemon=True)
        self._process.start()
        there.close()
        self.url = _announced(here, self._process)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL: nothing is said, closed or finished."""
        self._process.kill()
        self._process.join()

    def ended(self, seconds: float = 10) -> int | None:
        """Wait for its end; its exit code, or None if it still runs."""
        self._process.join(seconds)
        return self._process.exitcode

    def stop(self) -> None:
        """SIGTERM, as a service manager sends it; SIGKILL where that does not help. May be called again."""
        if self.running:
            self._process.terminate()
            self._process.join(15)
        self.kill()


def _announced(pipe: Connection, process: BaseProcess) -> str:
    with pipe:
        if pipe.poll(_START_SECONDS):
            with contextlib.suppress(EOFError):
                return f"http://127.0.0.1:{pipe.recv()}"
    process.kill()
    process.join()
    return ""  # killed before it listened, which some tests want


@dataclass
class Shop:
    """A seller with an address and a settlement wallet of its own on the local chain."""

    chain: EvmDevnet
    folder: Path
    setup: Setup
    first_block: int
    servers: list[Server] = field(default_factory=list[Server])
    shown: list[Shown] = field(default_factory=list[Shown])
    _http: httpx.Client = field(
        default_factory=lambda: httpx.Client(trust_env=False, verify=False, limits=_EACH_ITS_OWN)
    )

    def start(self, count: int = 1, **changes: Any) -> Server:
        """Start server processes with ``changes`` to the setup; the last one is returned."""
        setup = replace(self.setup, **changes)
        with ThreadPoolExecutor(count) as pool:
            self.servers += pool.map(Server, [setup] * count)
        return self.servers[-1]

    def stop(self) -> None:
        for server in self.servers:
            server.kill()
        self._http.close()

    # Paying

    def challenge(self, path: str = "/goods", method: str = "GET", body: bytes = b"") -> PaymentRequired:
        answer = self._request(method, path, body, {})
        assert answer.status_code == 402, answer.text
        return parse_payment_required(decode_header(answer.headers["payment-required"]))

    def pay(
        self,
        path: str = "/goods",
        method: str = "GET",
        body: bytes = b"",
        *,
        payer: EvmAccount | None = None,
        seconds: int = 300,
        **changes: Any,
    ) -> Payment:
        """Sign for the first offer. ``seconds`` until the authorization ends, on the chain's clock."""
        account = payer or self.chain.accounts[1]
        made = self.challenge(path, method, body)
        offer = made.accepts[0]
        ends = max(int(time.time()), self.chain_time()) + seconds
        nonce = secrets.token_bytes(32)
        transfer = Transfer(account.address.lower(), offer.pay_to.lower(), offer.amount, 0, ends, nonce, b"")
        transfer = sign(transfer._replace(**changes), account)
        document: Json = {"x402Version": 2, "accepted": made.raw_accepts[0], "payload": payload_of(transfer)}
        header = encode_header(document)
        return Payment(header, method, path, account.address, "0x" + nonce.hex(), offer.amount, body)

    def prove(self, path: str = "/goods", method: str = "GET", body: bytes = b"", *, key: str = "") -> Payment:
        """A fresh wallet proof of the payer, for one call from its balance."""
        account = self.chain.accounts[1]
        wallet = evm_wallet(bytes.fromhex(account.private_key.removeprefix("0x")))
        text = header(katana(wallet, int(time.time()), service="x402kit")).decode()
        return Payment(text, method, path, account.address, secrets.token_hex(8), 0, body, proof=True, key=key)

    def fund(self, amount: int) -> None:
        """Credit the payer by hand, in atomic units."""
        account = Account.of("eip155:8453", self.chain.usdc, self.chain.accounts[1].address)

        async def deposit() -> None:
            store = SQLiteStore(self.setup.ledger)
            await store.start()
            await store.deposit(account, amount, secrets.token_hex(8))
            await store.close()

        asyncio.run(deposit())

    @property
    def balance(self) -> tuple[int, int]:
        """What the payers have available and held, together."""
        return tuple(self.query("SELECT ifnull(sum(available), 0), ifnull(sum(held), 0) FROM accounts")[0])

    def show(
        self,
        payment: Payment,
        server: Server | None = None,
        *,
        path: str = "",
        method: str = "",
        body: bytes | None = None,
        timeout: float = 40,
    ) -> Shown:
        """Show a payment, with another path, method or body than it was made for if given. Raises httpx's errors."""
        body = payment.body if body is None else body
        answer = self._request(method or payment.method, path or payment.path, body, payment.headers, server, timeout)
        return self.note(payment, answer)

    def note(self, payment: Payment, answer: httpx.Response) -> Shown:
        """Write an answer down, with what the chain says at that moment if it denies that money moved."""
        moved = answer.status_code == 402 and self.moved(payment)
        made = Shown(payment, answer.status_code, answer.headers, answer.content, moved)
        self.shown.append(made)
        return made

    def show_at_once(self, payment: Payment, count: int, servers: Sequence[Server] | None = None) -> list[Shown]:
        """Show one payment ``count`` times at the same time, spread over the servers."""
        among = servers or self.servers

        def once(number: int) -> Shown:
            return self.show(payment, among[number % len(among)])

        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(once, range(count)))

    def show_until_decided(self, payment: Payment, server: Server | None = None, *, seconds: float = 15) -> Shown:
        """As a payer's program does: the same payment again after 409, 5xx or no answer, until the answer is final."""
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(httpx.TransportError):
                last = self.show(payment, server)
                if last.status in (200, 202, 402, 403):
                    return last
            assert time.monotonic() < end, f"no final answer: {self.shown[-1:]}"
            time.sleep(0.05)

    def _request(
        self,
        method: str,
        path: str,
        body: bytes,
        headers: dict[str, str],
        server: Server | None = None,
        timeout: float = 40,
    ) -> httpx.Response:
        url = (server or self.servers[-1]).url + path
        return self._http.request(method, url, content=body or None, headers=headers, timeout=timeout)

    # Looking

    def claims(self) -> list[Claim]:
        """The claims table as it is on disk."""
        return [Claim._make(row) for row in self.query(f"SELECT {', '.join(Claim._fields)} FROM claims ORDER BY id")]

    def claim(self, payment: Payment) -> Claim | None:
        return next((claim for claim in self.claims() if claim.payment_id.endswith(payment.id)), None)

    def open_holds(self) -> list[Any]:
        """Ids and amounts of reserves that have no end yet, but for jobs whose time is not over."""
        if not self.query("SELECT 1 FROM sqlite_master WHERE name = 'holds'"):
            return []
        now = int(time.time())
        return self.query("SELECT id, amount FROM holds WHERE state = 'open' AND deadline <= ?", now)

    @property
    def deposited(self) -> int:
        """What was credited by hand, without a payment."""
        return int(self.query("SELECT ifnull(sum(available), 0) FROM log WHERE key LIKE 'deposit:%'")[0][0])

    def state(self, payment: Payment) -> str:
        claim = self.claim(payment)
        return claim.state if claim else ""

    def query(self, sql: str, *values: Any) -> list[Any]:
        """Read the ledger's file, as nobody's part of it."""
        if not Path(self.setup.ledger).exists():
            return []
        with contextlib.closing(sqlite3.connect(self.setup.ledger, timeout=10)) as connection:
            return connection.execute(sql, values).fetchall()

    def runs(self, what: str = "begin") -> list[str]:
        """The references of the payments for which a handler began, or ended, in order."""
        log = Path(self.setup.runs)
        lines = [line.split(" ") for line in log.read_text().splitlines()] if log.exists() else []
        return [reference for step, reference in lines if step == what]

    @property
    def log(self) -> str:
        """What the servers said."""
        path = Path(self.setup.log)
        return path.read_text() if path.exists() else ""

    def chain_time(self) -> int:
        return int(self.chain.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)

    def moved(self, payment: Payment) -> bool:
        """Whether the chain shows this payment's transfer to us."""
        return any(found.payment == payment.id for found in self.transfers())

    def transfers(self) -> list[ChainTransfer]:
        """Every transfer to us by an authorization, from the chain's logs."""
        return list(_transfers(self.chain, self.setup.pay_to, self.first_block))

    def wait_for(self, what: Callable[[], Any], seconds: float = 10) -> Any:
        """Poll until it is true; its value."""
        end = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < end, f"waited in vain for {what}; {[(c.state, c.reason) for c in self.claims()]}"
            time.sleep(0.02)
        return found


def at_once(*calls: Callable[[], Shown]) -> list[Shown]:
    """Make calls at the same time; what each returned."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


@contextlib.contextmanager
def faulty_node(chain: EvmDevnet) -> Generator[FaultyRpc]:
    """The chain's node behind a proxy with faults, in a thread with a loop of its own."""
    ready: queue.SimpleQueue[FaultyRpc] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()
    ended = asyncio.Event()

    async def run() -> None:
        async with faulty_rpc(chain.rpc_url) as node:
            ready.put(node)
            await ended.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    try:
        yield ready.get(timeout=10)
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)
        loop.close()


@dataclass(frozen=True)
class ChainTransfer:
    """``payment``: payer and nonce, as ``Payment.id``."""

    payment: str
    amount: int
    transaction: str
    block: int


_TRANSFER: Final = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
_USED: Final = "0x98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5"


def _transfers(chain: EvmDevnet, pay_to: str, first: int) -> Generator[ChainTransfer]:
    if int(chain.rpc("eth_blockNumber"), 16) < first:
        return
    wanted = {"address": chain.usdc, "fromBlock": hex(first), "toBlock": "latest"}
    used = chain.rpc("eth_getLogs", {**wanted, "topics": [_USED]})
    to = "0x" + "0" * 24 + pay_to[2:].lower()
    for entry in chain.rpc("eth_getLogs", {**wanted, "topics": [_TRANSFER, None, to]}):
        payer = "0x" + entry["topics"][1][26:]
        # The token writes the use of a nonce right before the transfer that it pays for.
        index = int(entry["logIndex"], 16) - 1
        mine = [u for u in used if u["transactionHash"] == entry["transactionHash"] and int(u["logIndex"], 16) == index]
        nonce = mine[0]["topics"][2] if mine else ""
        block = int(entry["blockNumber"], 16)
        yield ChainTransfer(f"{payer}:{nonce}", int(entry["data"], 16), entry["transactionHash"], block)


@contextlib.contextmanager
def opened(chain: EvmDevnet, folder: Path, **changes: Any) -> Generator[Shop]:
    """A shop without servers yet; at the end every server is killed."""
    key = secrets.token_bytes(32)
    chain.rpc("anvil_setBalance", address_of(key), hex(10**18))
    setup = Setup(
        ledger=str(folder / "payments.db"),
        runs=str(folder / "runs"),
        log=str(folder / "log"),
        rpc=chain.rpc_url,
        pay_to=checksum("0x" + secrets.token_hex(20)),
        key=key.hex(),
    )
    shop = Shop(chain, folder, replace(setup, **changes), int(chain.rpc("eth_blockNumber"), 16) + 1)
    try:
        yield shop
    finally:
        shop.stop()
