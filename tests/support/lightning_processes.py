"""The seller of lightning_till.py as server processes that share a ledger, each of which can be made to die."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import httpx
import uvicorn

from tests.support.lightning_till import SERVICE, Bought, Price, Till, WaryNode, app_of, read_offer
from x402kit import Paywall
from x402kit.devnet import LightningDevnet, LightningNode
from x402kit.ledger.sqlite import SQLiteStore
from x402kit.model import Claim
from x402kit.networks.lightning import Lightning
from x402kit.networks.lightning_port import REGTEST
from x402kit.networks.lnd import Lnd

from .asking import ORIGIN, Answer
from .processes import FORKED
from .rails import OfflineRail
from .serving import Announcing

__all__ = ["SHOWING", "Setup", "Street", "opened"]

SHOWING: Final = (
    "store.get",
    "store.get_invoice",
    "node.look_up",
    "store.claim",
    "store.note_invoice",
    "handler",
    "store.move",
    "response",
)
"""The steps of a call that is paid over Lightning, in order."""
_LEASE: Final = 0.5
_START_SECONDS: Final = 20


@dataclass(frozen=True)
class Setup:
    """``kill``: the process dies right after its first time at this step; with a ``-`` before it, right before."""

    ledger: str
    runs: str
    node: LightningNode
    kill: str = ""
    deaf: bool = False


def serve(setup: Setup, ready: Connection) -> None:
    """Run until SIGTERM; ``ready`` gets the port once requests are served."""
    output = os.open(setup.runs + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 2)
    store = SQLiteStore(setup.ledger, lease_seconds=_LEASE)
    node = WaryNode(setup.node)
    node.deaf = setup.deaf
    part, _, name = setup.kill.removeprefix("-").partition(".")
    if name:
        _arm({"store": store, "node": node}[part], name, before=setup.kill.startswith("-"))
    price = Price()
    rail = Lightning(node, price=price, network=REGTEST)
    paywall = Paywall(
        [rail, OfflineRail()],
        store,
        origin=ORIGIN,
        service=SERVICE,
        reconcile_seconds=0.1,
    )
    till = _Process(None, node, OfflineRail(), price, paywall, None, log=setup.runs, kill=setup.kill)
    gate = paywall.protect(app_of(till))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def last(message: Any) -> None:
            await send(message)
            paid = any(key == b"authorization" for key, _ in scope.get("headers", ()))
            if setup.kill == "response" and paid and message["type"] == "http.response.body":
                _die()

        await gate(scope, receive, last)

    Announcing(uvicorn.Config(app, port=0, log_level="error", lifespan="on", ws="none"), ready).run()


class _Process(Till):
    """A till that writes its runs to a file."""

    def __init__(self, *arguments: Any, log: str, kill: str) -> None:
        super().__init__(*arguments)
        self._log, self._kill = log, kill

    def ran(self, path: str, source: str, key: str) -> None:
        output = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(output, f"{path} {source} {key}\n".encode())
        os.close(output)
        if self._kill == "handler":
            _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(target: Any, name: str, *, before: bool) -> None:
    original = getattr(target, name)

    async def deadly(*arguments: Any, **named: Any) -> Any:
        if before:
            _die()
        made = await original(*arguments, **named)
        _die()
        return made

    setattr(target, name, deadly)


# In front of them


@dataclass
class Street:
    """The processes, and a payer. What was bought is shown to any of them."""

    setup: Setup
    payer: Lnd
    http: httpx.AsyncClient
    running: list[tuple[str, Any]] = field(default_factory=list[tuple[str, Any]])

    async def start(self, kill: str = "", *, deaf: bool = False) -> str:
        """Another process; its address."""
        here, there = FORKED.Pipe(duplex=False)
        setup = Setup(self.setup.ledger, self.setup.runs, self.setup.node, kill, deaf)
        process = FORKED.Process(target=serve, args=(setup, there), daemon=True)
        process.start()
        there.close()
        with here:
            assert await asyncio.to_thread(here.poll, _START_SECONDS)
            url = f"http://127.0.0.1:{here.recv()}"
        self.running.append((url, process))
        return url

    def killed(self) -> None:
        """The last process has died of the signal that it gave itself."""
        _, process = self.running.pop()
        process.join(10)
        assert process.exitcode == -signal.SIGKILL, "the step was not reached"

    async def buy(self, path: str = "/fixed") -> Bought:
        url, _ = self.running[-1]
        offer = read_offer(_answer(await self.http.get(url + path)))
        paid = await self.payer.pay(offer.invoice, max_fee=1000, timeout_seconds=10)
        return Bought(offer, paid.preimage)

    async def show(self, headers: Mapping[str, str], path: str = "/fixed", *, number: int = -1) -> Answer:
        return _answer(await self.http.get(self.running[number][0] + path, headers=dict(headers)))

    async def decided(self, headers: Mapping[str, str], path: str = "/fixed") -> Answer:
        """Shown again until the answer is final, as a payer's program does."""
        end = time.monotonic() + 10
        while (answer := await self.show(headers, path)).status in (409, 500, 503):
            assert time.monotonic() < end, answer
            await asyncio.sleep(0.03)
        return answer

    @property
    def runs(self) -> Counter[str]:
        """How often a handler began, by what paid for it."""
        log = Path(self.setup.runs)
        return Counter(line.split(" ")[2] for line in log.read_text().splitlines()) if log.exists() else Counter()

    def query(self, sql: str, *values: Any) -> list[Any]:
        """The ledger's file, beside its processes."""
        with contextlib.closing(sqlite3.connect(self.setup.ledger, timeout=10, isolation_level=None)) as connection:
            return connection.execute(sql, values).fetchall()

    def claims(self) -> list[Claim]:
        return [Claim._make(row) for row in self.query(f"SELECT {', '.join(Claim._fields)} FROM claims")]

    async def settled_down(self) -> None:
        """No lease, nothing held; the books add up to what was paid (I1 to I6)."""
        end = time.monotonic() + 5
        while any(claim.lease_until > time.monotonic() * 1000 for claim in self.claims()):
            assert time.monotonic() < end, "a lease that does not end"
            await asyncio.sleep(0.05)
        store = SQLiteStore(self.setup.ledger)
        await store.start()
        try:
            assert await store.verify() == []
            booked = sum(claim.amount for claim in self.claims() if claim.state in ("served", "credited"))
            for sums in (await store.totals()).values():
                assert -sums["external"] == booked
                assert sums["held"] == sums["holds"]
        finally:
            await store.close()


def _answer(response: httpx.Response) -> Answer:
    return Answer(response.status_code, list(response.headers.multi_items()), [response.content], complete=True)


@contextlib.asynccontextmanager
async def opened(devnet: LightningDevnet, folder: Path) -> AsyncGenerator[Street]:
    """Without a process yet; at the end every one is killed."""
    payer = Lnd(devnet.payer.url, devnet.payer.macaroon)
    await payer.start()
    setup = Setup(str(folder / "payments.db"), str(folder / "runs"), devnet.seller)
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(trust_env=False, timeout=20, limits=limits) as http:
        street = Street(setup, payer, http)
        try:
            yield street
        finally:
            await payer.close()
            for _, process in street.running:
                process.kill()
                process.join(10)
