"""phoenixd's HTTP API: forms in, JSON or plain text out, fields without a value left out."""

from __future__ import annotations

import base64
import time
import uuid
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from .node import Json, Product, RealNode, Said

__all__ = ["PhoenixdServer"]

PASSWORD = "f" * 64
LIMITED_PASSWORD = "1" * 64


class PhoenixdServer(Product):
    """``liquidity``: msat that it keeps of each payment for a larger channel."""

    def __init__(self, node: RealNode) -> None:
        super().__init__(node)
        self.liquidity = 0
        self._ids: dict[str, str] = {}

    async def answer(self, request: Request) -> Response:
        password = _password(request)
        if password not in (PASSWORD, LIMITED_PASSWORD):
            return PlainTextResponse("Invalid authentication (use basic auth with the http password)", 401)
        path = request.url.path.removeprefix("/")
        if request.method == "POST":
            form = dict(parse_qsl((await request.body()).decode(), keep_blank_values=True, strict_parsing=True))
            return await self._post(path, form, password)
        if path == "getinfo":
            chain: Json = {"nodeId": self.node.node.pubkey, "channels": [], "chain": "regtest", "version": "0.8.0"}
            return JSONResponse(chain)
        if path == "payments/incoming":
            return await self._incoming(request)
        head, _, payment_hash = path.rpartition("/")
        if head == "payments/incoming":
            row = await self.node.invoice(payment_hash)
            return _found(None if row is None else self._invoice(row))
        if head == "payments/outgoingbyhash":
            return _found(await self._outgoing(payment_hash))
        return PlainTextResponse("Unknown endpoint (check api doc)", 404)

    async def _post(self, path: str, given: dict[str, str], password: str) -> Response:
        if path == "createinvoice":
            if len(given["description"]) > 128:
                return PlainTextResponse("Request parameter description is too long (max 128 characters)", 400)
            row = await self.node.add(int(given["amountSat"]) * 1000, given["description"], int(given["expirySeconds"]))
            payment_hash = base64.b64decode(row["r_hash"]).hex()
            self._ids[payment_hash] = given.get("externalId", "")
            made = {"amountSat": int(given["amountSat"]), "paymentHash": payment_hash}
            return JSONResponse({**made, "serialized": row["payment_request"]})
        if path == "payinvoice":
            if password != PASSWORD:
                return PlainTextResponse("Invalid authentication (use basic auth with the http password)", 401)
            return await self._payinvoice(given["invoice"])
        return PlainTextResponse("Unknown endpoint (check api doc)", 404)

    async def _payinvoice(self, bolt11: str) -> Response:
        try:
            sent = await self.node.send(bolt11, 10_000_000, 60)
        except Said as e:
            if "bech32" in str(e):
                return PlainTextResponse("Request parameter invoice is invalid", 400)
            return JSONResponse({"type": "payment_failed", "reason": str(e)})
        if sent["status"] == "FAILED":
            failed = {"type": "payment_failed", "paymentHash": sent["payment_hash"]}
            return JSONResponse({**failed, "reason": "the recipient rejected the payment"})
        done = {
            "type": "payment_sent",
            "recipientAmountSat": int(sent["value_sat"]),
            "routingFeeSat": int(sent["fee_sat"]),
            "paymentId": str(uuid.uuid4()),
            "paymentHash": sent["payment_hash"],
            "paymentPreimage": sent["payment_preimage"],
        }
        return JSONResponse(done)

    async def _incoming(self, request: Request) -> Response:
        query = request.query_params
        since, limit, offset = int(query.get("from", "0")), int(query.get("limit", "20")), int(query.get("offset", "0"))
        rows = [self._invoice(row) for row in reversed(await self.node.settled())]
        rows = [row for row in rows if row["completedAt"] >= since]
        return JSONResponse(rows[offset : offset + limit])

    def _invoice(self, row: Json) -> Json:
        payment_hash, is_paid = base64.b64decode(row["r_hash"]).hex(), row["state"] == "SETTLED"
        created, expiry = int(row["creation_date"]), int(row["expiry"])
        shown: Json = {
            "type": "incoming_payment",
            "subType": "lightning",
            "paymentHash": payment_hash,
            "preimage": base64.b64decode(row["r_preimage"]).hex(),
            "description": row["memo"],
            "invoice": row["payment_request"],
            "isPaid": is_paid,
            "isExpired": time.time() > created + expiry,
            "requestedSat": int(row["value"]),
            "receivedSat": (int(row["amt_paid_msat"]) - self.liquidity) // 1000 if is_paid else 0,
            "fees": self.liquidity if is_paid else 0,
            "expiresAt": (created + expiry) * 1000,
            "createdAt": created * 1000,
        }
        if self._ids.get(payment_hash):
            shown["externalId"] = self._ids[payment_hash]
        return {**shown, "completedAt": int(row["settle_date"]) * 1000} if is_paid else shown

    async def _outgoing(self, payment_hash: str) -> Json | None:
        row = await self.node.payment(payment_hash)
        if row is None:
            return None
        shown: Json = {
            "type": "outgoing_payment",
            "subType": "lightning",
            "paymentId": str(uuid.uuid4()),
            "paymentHash": row["payment_hash"],
            "isPaid": row["status"] == "SUCCEEDED",
            "sent": int(row["value_sat"]),
            "fees": int(row["fee_msat"]),
            "invoice": row["payment_request"],
            "createdAt": int(row["creation_date"]) * 1000,
        }
        if row["status"] == "SUCCEEDED":
            shown["preimage"] = row["payment_preimage"]
        return shown if row["status"] == "IN_FLIGHT" else {**shown, "completedAt": int(time.time() * 1000)}


def _password(request: Request) -> str:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    return base64.b64decode(value).decode().partition(":")[2] if scheme == "Basic" else ""


def _found(row: Json | None) -> Response:
    return PlainTextResponse("Not found", 404) if row is None else JSONResponse(row)
