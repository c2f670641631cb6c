"""Ask an ASGI app as a server does, message by message, and look at everything that it answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote

from starlette.types import ASGIApp, Message

from x402kit import Paywall
from x402kit.asgi.gate import Gate
from x402kit.model import Json, PaymentRequired, SettlementResponse
from x402kit.protocols.x402 import decode_header, parse_payment_required, parse_settlement_response

from .payments import Payment, pay
from .rails import OfflineRail

__all__ = ["Answer", "Shop", "ask", "make_scope", "opened", "paywall_of"]

ORIGIN = "https://shop.example"
HeaderList = Sequence[tuple[str, str]] | dict[str, str]


@dataclass
class Answer:
    """What came back; ``raised`` is what the app threw at its server."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    chunks: list[bytes] = field(default_factory=list[bytes])
    complete: bool = False
    raised: Exception | None = None

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def header(self, name: str) -> str:
        """The only header of that name, or an empty text."""
        found = self.all(name)
        assert len(found) < 2, (name, found)
        return found[0] if found else ""

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        """Why: of a problem document, or of a challenge."""
        made = self.json()
        return str(made["reason"] if "reason" in made else made["error"])

    @property
    def challenge(self) -> PaymentRequired:
        assert self.status == 402, (self.status, self.body)
        return parse_payment_required(decode_header(self.header("PAYMENT-REQUIRED")))

    @property
    def entry(self) -> Json:
        """The first offer, as it came."""
        return self.challenge.raw_accepts[0]

    @property
    def receipt(self) -> SettlementResponse:
        return parse_settlement_response(decode_header(self.header("PAYMENT-RESPONSE")))


def _items(headers: HeaderList) -> list[tuple[str, str]]:
    return list(headers.items()) if isinstance(headers, dict) else list(headers)


def _pairs(headers: HeaderList) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in _items(headers)]


def make_scope(method: str, target: str, headers: HeaderList = (), **changes: Any) -> dict[str, Any]:
    """An ASGI scope as a server makes it of a request line."""
    raw_path, _, query = target.partition("?")
    made = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(raw_path),
        "raw_path": raw_path.encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "root_path": "",
        "headers": [(b"host", b"shop.example"), *_pairs(headers)],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    return {**made, **changes}


async def ask(
    app: ASGIApp,
    method: str,
    target: str,
    headers: HeaderList = (),
    *,
    body: bytes | Iterable[bytes] = b"",
    json_body: Any = None,
    leave: asyncio.Event | None = None,
    **changes: Any,
) -> Answer:
    """One request. The caller stays until the answer is complete, or until ``leave`` is set."""
    content = json.dumps(json_body).encode() if json_body is not None else body
    parts = [content] if isinstance(content, bytes) else list(content)
    messages: list[Message] = [
        {"type": "http.request", "body": part, "more_body": index < len(parts) - 1} for index, part in enumerate(parts)
    ]
    answer = Answer()
    gone = leave or asyncio.Event()

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        await asyncio.sleep(0)
        if message["type"] == "http.response.start":
            assert not answer.status, "two answers to one request"
            answer.status = message["status"]
            answer.headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in message.get("headers", ())]
        elif message["type"] == "http.response.body":
            assert answer.status, "a body before its start"
            assert not answer.complete, "a body after its end"
            answer.chunks.append(message.get("body", b""))
            if not message.get("more_body", False):
                answer.complete = True
                gone.set()

    try:
        await app(make_scope(method, target, headers, **changes), receive, send)
    except Exception as e:  # noqa: BLE001  # the part of the server: it would log this, and answer 500 if it still can
        answer.raised = e
    return answer


def paywall_of(rail: OfflineRail, ledger: Path, **options: Any) -> Paywall:
    """A paywall on a rail without a chain."""
    settings: dict[str, Any] = {"origin": ORIGIN, "secret": b"a secret of the tests", **options}
    return Paywall([rail], ledger, **settings)


@dataclass
class Shop:
    """A paywall on an offline rail, with an app put behind it by ``open``."""

    rail: OfflineRail
    paywall: Paywall
    app: ASGIApp | None = None

    def open(self, app: ASGIApp, prices: Mapping[str, Any] | None = None) -> Gate:
        gate = self.paywall.protect(app, prices)
        self.app = gate
        return gate

    async def ask(self, method: str, target: str, headers: HeaderList = (), **options: Any) -> Answer:
        assert self.app is not None
        return await ask(self.app, method, target, headers, **options)

    async def payment(
        self, method: str, target: str, *, terms: dict[str, Any] | None = None, **options: Any
    ) -> Payment:
        """Ask, and sign a payment for the first offer."""
        return pay((await self.ask(method, target, **options)).entry, **(terms or {}))

    async def buy(self, method: str, target: str, headers: HeaderList = (), **options: Any) -> Answer:
        """Ask, pay as the standard clients do, and ask again."""
        items = _items(headers)
        payment = await self.payment(method, target, headers=items, **options)
        return await self.ask(method, target, [*items, ("PAYMENT-SIGNATURE", payment.v2())], **options)

    async def claim(self, payment: Payment) -> Any:
        """The claim of a payment, or None."""
        authorization = payment.payload["authorization"]
        chain, token = payment.entry["network"].split(":")[1], payment.entry["asset"].lower()
        return await self.paywall.store.get(
            f"evm:{chain}:{token}:{authorization['from'].lower()}:{authorization['nonce']}"
        )


@asynccontextmanager
async def opened(
    *, rail: OfflineRail | None = None, ledger: Path | None = None, **options: Any
) -> AsyncGenerator[Shop]:
    """A shop with a ledger of its own, closed at the end."""
    with TemporaryDirectory() as place:
        stub = rail or OfflineRail()
        paywall = paywall_of(stub, ledger or Path(place) / "payments.db", **options)
        try:
            yield Shop(stub, paywall)
        finally:
            await paywall.stop()
