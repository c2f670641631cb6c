"""Core Lightning's clnrest: POST /v1/<command>, authorized by a rune; 201, or an error of JSON-RPC."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .node import Json, Product, RealNode, Said

__all__ = ["Clnrest"]

RUNE = "cnVuZSBmb3IgZXZlcnl0aGluZw=="
INVOICE_RUNE = "cnVuZSBmb3IgaW52b2ljZXM="
_FOR_INVOICES = frozenset(("getinfo", "invoice", "listinvoices", "waitanyinvoice"))


class Refused(Exception):
    """An error of a command."""

    def __init__(self, code: int, message: str, status: int = 500) -> None:
        self.code, self.message, self.status = code, message, status


class Clnrest(Product):
    """``old``: a node from before xpay, which wrote msat as text."""

    def __init__(self, node: RealNode, *, old: bool = False) -> None:
        super().__init__(node)
        self.old = old
        self._labels: dict[str, str] = {}
        self.commands = {
            "getinfo": self._getinfo,
            "invoice": self._invoice,
            "listinvoices": self._listinvoices,
            "waitanyinvoice": self._waitanyinvoice,
            "listpays": self._listpays,
            "pay": self._pay,
            **({} if old else {"xpay": self._xpay}),
        }

    async def answer(self, request: Request) -> Response:
        try:
            return JSONResponse(await self._command(request), 201)
        except Refused as e:
            return JSONResponse({"code": e.code, "message": e.message}, e.status)

    async def _command(self, request: Request) -> Json:
        head, _, command = request.url.path.rpartition("/")
        if head != "/v1":
            raise Refused(-32601, "Path not found", 404)
        if request.method != "POST":
            raise Refused(-32601, "Path invalid, http_method must be POST for CLN methods", 405)
        body = await request.body()
        params: Json = json.loads(body or b"{}")
        rune = request.headers.get("rune")
        if rune is None:
            raise Refused(1501, "Not authorized: Missing rune", 403)
        if rune == INVOICE_RUNE and command not in _FOR_INVOICES:
            raise Refused(1502, "Not permitted: method does not match", 401)
        if rune not in (RUNE, INVOICE_RUNE):
            raise Refused(1501, "Not authorized: Not derived from master", 401)
        if command not in self.commands:
            raise Refused(-32601, f"Unknown command '{command}'", 404)
        return await self.commands[command](params)

    async def _getinfo(self, params: Json) -> Json:
        _only(params)
        return {"id": self.node.node.pubkey, "alias": "x402kit", "version": "v26.06", "network": "regtest"}

    async def _invoice(self, params: Json) -> Json:
        _only(params, "amount_msat", "label", "description", "expiry")
        if any(ord(letter) < 32 and letter not in "\b\t\n\f\r" for letter in params["description"]):
            raise Refused(-32602, "Invalid UTF-8 or \\u in description")
        if params["label"] in self._labels.values():
            raise Refused(900, "Duplicate label")
        row = await self.node.add(int(params["amount_msat"]), params["description"], params["expiry"])
        payment_hash = base64.b64decode(row["r_hash"]).hex()
        self._labels[payment_hash] = params["label"]
        return {
            "payment_hash": payment_hash,
            "expires_at": int(row["creation_date"]) + int(row["expiry"]),
            "bolt11": row["payment_request"],
            "payment_secret": base64.b64decode(row["payment_addr"]).hex(),
            "created_index": int(row["add_index"]),
            "warning_capacity": "Insufficient incoming channel capacity to pay invoice",
        }

    async def _listinvoices(self, params: Json) -> Json:
        _only(params, "payment_hash")
        row = await self.node.invoice(params["payment_hash"])
        return {"invoices": [] if row is None else [self._shown(row)]}

    async def _waitanyinvoice(self, params: Json) -> Json:
        _only(params, "lastpay_index", "timeout")
        end = time.monotonic() + params["timeout"]
        while True:
            for row in await self.node.settled():
                if int(row["settle_index"]) > params["lastpay_index"]:
                    return self._shown(row)
            if time.monotonic() >= end:
                raise Refused(904, "Timed out")
            await asyncio.sleep(0.02)

    async def _pay(self, params: Json) -> Json:
        _only(params, "bolt11", "maxfee", "retry_for")
        sent = await self._sent(params["bolt11"], params)
        return {
            "payment_preimage": sent["payment_preimage"],
            "payment_hash": sent["payment_hash"],
            "created_at": int(sent["creation_date"]) + 0.25,
            "parts": 1,
            "amount_msat": self._msat(sent["value_msat"]),
            "amount_sent_msat": self._msat(int(sent["value_msat"]) + int(sent["fee_msat"])),
            "status": "complete",
        }

    async def _xpay(self, params: Json) -> Json:
        _only(params, "invstring", "maxfee", "retry_for")
        sent = await self._sent(params["invstring"], params)
        return {
            "payment_preimage": sent["payment_preimage"],
            "failed_parts": 0,
            "successful_parts": 1,
            "amount_msat": int(sent["value_msat"]),
            "amount_sent_msat": int(sent["value_msat"]) + int(sent["fee_msat"]),
        }

    async def _sent(self, bolt11: str, params: Json) -> Json:
        if type(params["maxfee"]) is not int or type(params["retry_for"]) is not int:
            raise Refused(-32602, "not an integer")
        try:
            sent = await self.node.send(bolt11, params["maxfee"], params["retry_for"])
        except Said as e:
            codes = {"invoice expired": 207, "invoice is already paid": 219}
            raise Refused(codes.get(str(e), -1), str(e)) from None
        if sent["status"] == "IN_FLIGHT":
            raise Refused(209, "Timed out after 1 attempts.")
        if sent["status"] == "FAILED":
            raise Refused(203 if "INCORRECT" in sent["failure_reason"] else 205, "Failed")
        return sent

    async def _listpays(self, params: Json) -> Json:
        _only(params, "payment_hash")
        row = await self.node.payment(params["payment_hash"])
        if row is None:
            return {"pays": []}
        status = {"SUCCEEDED": "complete", "FAILED": "failed", "IN_FLIGHT": "pending"}[row["status"]]
        shown: Json = {
            "payment_hash": row["payment_hash"],
            "status": status,
            "created_at": int(row["creation_date"]),
            "bolt11": row["payment_request"],
            "amount_sent_msat": self._msat(int(row["value_msat"]) + int(row["fee_msat"])),
        }
        if status == "complete":
            shown |= {"preimage": row["payment_preimage"], "amount_msat": self._msat(row["value_msat"])}
        return {"pays": [shown]}

    def _shown(self, row: Json) -> Json:
        payment_hash = base64.b64decode(row["r_hash"]).hex()
        status = {"SETTLED": "paid", "CANCELED": "expired"}.get(row["state"], "unpaid")
        shown: Json = {
            "label": self._labels.get(payment_hash, payment_hash),
            "bolt11": row["payment_request"],
            "payment_hash": payment_hash,
            "amount_msat": self._msat(row["value_msat"]),
            "status": status,
            "description": row["memo"],
            "expires_at": int(row["creation_date"]) + int(row["expiry"]),
        }
        if status == "paid":
            shown |= {
                "pay_index": int(row["settle_index"]),
                "amount_received_msat": self._msat(row["amt_paid_msat"]),
                "paid_at": int(row["settle_date"]),
                "payment_preimage": base64.b64decode(row["r_preimage"]).hex(),
            }
        return shown

    def _msat(self, amount: Any) -> int | str:
        return f"{amount}msat" if self.old else int(amount)


def _only(params: Json, *names: str) -> None:
    for name in params:
        if name not in names:
            raise Refused(-32602, f"unknown parameter: {name}")
    for name in names:
        if name not in params:
            raise Refused(-32602, f"missing required parameter: {name}")
