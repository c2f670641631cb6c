"""The wallet API of LNbits 1.x: one key for invoices, one that pays too; answers in msat, what goes out is negative."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from x402kit.protocols.bolt11 import decode

from .node import Json, Product, RealNode, Said

__all__ = ["LNbitsServer"]

ADMIN_KEY = "a" * 32
INVOICE_KEY = "b" * 32
WALLET = "c" * 32


class LNbitsServer(Product):
    """``wait_seconds``: after so long a payment is left to itself, and pending."""

    def __init__(self, node: RealNode) -> None:
        super().__init__(node)
        self.wait_seconds = 5.0
        self._sent: dict[str, str] = {}

    async def answer(self, request: Request) -> Response:
        path = request.url.path.removeprefix("/api/v1/")
        if path == "payments/fee-reserve":
            return JSONResponse({"fee_reserve": _reserve(decode(request.query_params["invoice"]).amount)})
        key = request.headers.get("x-api-key", "")
        head, _, payment_hash = path.rpartition("/")
        if head == "payments":
            return await self._record(payment_hash, known=key in (ADMIN_KEY, INVOICE_KEY))
        if key not in (ADMIN_KEY, INVOICE_KEY):
            return JSONResponse({"detail": "Wallet not found."}, 404)
        if path == "wallet":
            wallet = {"name": "x402kit", "balance": 1_000_000_000}
            return JSONResponse({**wallet, "id": WALLET} if key == ADMIN_KEY else wallet)
        if path != "payments":
            return JSONResponse({"detail": "Not Found"}, 404)
        return await (self._create(request, key) if request.method == "POST" else self._list(request))

    async def _create(self, request: Request, key: str) -> Response:
        given = await request.json()
        if not given["out"]:
            if type(given["amount"]) is not int or given["unit"] != "sat":
                return JSONResponse({"detail": "amount"}, 400)
            row = await self.node.add(given["amount"] * 1000, given["memo"] or "LNbits", given["expiry"])
            return JSONResponse(_incoming(row), 201)
        if key != ADMIN_KEY:
            return JSONResponse({"detail": "Invoice (or Admin) key required."}, 403)
        return await self._pay(given["bolt11"])

    async def _pay(self, bolt11: str) -> Response:
        try:
            invoice = decode(bolt11)
        except ValueError:
            return JSONResponse({"detail": "Bolt11 decoding failed.", "status": "failed"}, 520)
        old = await self._outgoing(invoice.payment_hash)
        if old is not None and old["status"] != "failed":
            word = "already paid" if old["status"] == "success" else "still pending"
            return JSONResponse({"detail": f"Payment {word}.", "status": old["status"]}, 520)
        try:
            await self.node.send(bolt11, _reserve(invoice.amount), self.wait_seconds)
        except Said as e:
            return JSONResponse({"detail": f"Payment failed: {e}", "status": "failed"}, 520)
        finally:
            self._sent[invoice.payment_hash] = bolt11
        row = await self._outgoing(invoice.payment_hash)
        if row is None or row["status"] == "failed":
            return JSONResponse({"detail": "Payment failed", "status": "failed"}, 520)
        return JSONResponse(row, 201)

    async def _record(self, payment_hash: str, *, known: bool) -> Response:
        row = await self._outgoing(payment_hash)
        if row is None:
            made = await self.node.invoice(payment_hash)
            row = None if made is None else _incoming(made)
        if row is None:
            return JSONResponse({"detail": "Payment does not exist."}, 404)
        said = {"paid": row["status"] == "success", "status": row["status"], "preimage": row["preimage"]}
        return JSONResponse({**said, "details": row} if known else said)

    async def _list(self, request: Request) -> Response:
        query = request.query_params
        limit, offset = int(query["limit"]), int(query["offset"])
        if (query["status"], query["sortby"], query["direction"]) != ("success", "updated_at", "desc"):
            return JSONResponse({"detail": "not what is asked for here"}, 400)
        rows = [_incoming(row) for row in reversed(await self.node.settled())]
        return JSONResponse(rows[offset : offset + limit])

    async def _outgoing(self, payment_hash: str) -> Json | None:
        if payment_hash not in self._sent and await self.node.payment(payment_hash) is None:
            return None
        row = await self.node.payment(payment_hash)
        status = {"SUCCEEDED": "success", "IN_FLIGHT": "pending"}.get(row["status"] if row else "", "failed")
        return _payment(
            payment_hash,
            row["payment_request"] if row else self._sent[payment_hash],
            amount=-int(row["value_msat"]) if row else -1000,
            fee=-int(row["fee_msat"]) if row else 0,
            status=status,
            preimage=row["payment_preimage"] if row and status == "success" else None,
        )


def _reserve(amount: int) -> int:
    return max(2000, -(-amount // 100))


def _incoming(row: Json) -> Json:
    status = {"SETTLED": "success", "CANCELED": "failed"}.get(row["state"], "pending")
    payment_hash, preimage = base64.b64decode(row["r_hash"]).hex(), base64.b64decode(row["r_preimage"]).hex()
    return _payment(
        payment_hash, row["payment_request"], amount=int(row["value_msat"]), fee=0, status=status, preimage=preimage
    )


def _payment(payment_hash: str, bolt11: str, *, amount: int, fee: int, status: str, preimage: str | None) -> Json:
    now = datetime.now(UTC).isoformat()
    row: dict[str, Any] = {
        "checking_id": payment_hash,
        "payment_hash": payment_hash,
        "wallet_id": WALLET,
        "amount": amount,
        "fee": fee,
        "bolt11": bolt11,
        "payment_request": bolt11,
        "fiat_provider": None,
        "status": status,
        "memo": "",
        "expiry": now,
        "webhook": None,
        "webhook_status": None,
        "preimage": preimage,
        "tag": None,
        "extension": None,
        "time": now,
        "created_at": now,
        "updated_at": now,
        "labels": [],
        "extra": {"wallet_fiat_currency": "USD", "wallet_fiat_amount": 0.01, "wallet_fiat_rate": 941.2},
    }
    return row
