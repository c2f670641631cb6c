"""The Katana dialect as its document describes it: a client's payment, and a server. Neither uses our own code.

What sets it apart from the published v2: no ``resource``; ``amount`` and ``maxAmountRequired``; ``extra`` explains the
price and holds no token name; ``maxTimeoutSeconds`` is the time for the answer; the client echoes no ``extra``, and its
times are numbers.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from eth_account import Account
from eth_account.messages import encode_typed_data
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from x402kit.devnet import EvmAccount, EvmDevnet
from x402kit.devnet.contracts import encode
from x402kit.model import Json

__all__ = ["KatanaServer", "katana_payment", "pack", "unpack"]

_NAMES = ("from", "to", "value", "validAfter", "validBefore", "nonce")
_KINDS = ("address", "address", "uint256", "uint256", "uint256", "bytes32")
_TYPES = {"TransferWithAuthorization": [{"name": n, "type": k} for n, k in zip(_NAMES, _KINDS, strict=True)]}
_TRANSFER = "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"
_ECHOED = ("scheme", "network", "asset", "payTo", "amount", "maxAmountRequired", "maxTimeoutSeconds")


def pack(value: Json) -> str:
    """A header's value."""
    return base64.b64encode(json.dumps(value).encode()).decode()


def unpack(text: str) -> Json:
    made: Json = json.loads(base64.b64decode(text, validate=True))
    return made


def _domain(entry: Json) -> Json:
    chain_id = int(entry["network"].removeprefix("eip155:"))
    return {"name": "USD Coin", "version": "2", "chainId": chain_id, "verifyingContract": entry["asset"]}


def katana_payment(challenge: str, payer: EvmAccount, seconds: int = 120) -> str:
    """The payment that a client written by the document sends for the first entry of a PAYMENT-REQUIRED header."""
    entry = unpack(challenge)["accepts"][0]
    now = int(time.time())
    terms: Json = {
        "from": payer.address,
        "to": entry["payTo"],
        "value": int(entry["amount"]),
        "validAfter": now - 5,
        "validBefore": now + seconds,
        "nonce": secrets.token_bytes(32),
    }
    signed = Account.sign_typed_data(payer.private_key, _domain(entry), _TYPES, terms)
    authorization = {**terms, "value": entry["amount"], "nonce": "0x" + terms["nonce"].hex()}
    return pack(
        {
            "x402Version": 2,
            "accepted": {key: entry[key] for key in _ECHOED},
            "payload": {"authorization": authorization, "signature": "0x" + bytes(signed.signature).hex()},
        }
    )


@dataclass
class KatanaServer:
    """``POST /v1/generation-requests?wait=false`` for 0.013938 USDC, settled before any work.

    ``account`` sends the transfers. ``payments`` are the payloads that it was shown, decoded.
    """

    chain: EvmDevnet
    pay_to: str
    account: EvmAccount
    amount: str = "13938"
    payments: list[Json] = field(default_factory=list[Json])

    def entry(self) -> Json:
        explained = {"subtotalUsd": "0.010000", "estimatedGasUsd": "0.003938", "totalUsd": "0.013938"}
        return {
            "scheme": "exact",
            "network": f"eip155:{self.chain.chain_id}",
            "asset": self.chain.usdc,
            "payTo": self.pay_to,
            "amount": self.amount,
            "maxAmountRequired": self.amount,
            "maxTimeoutSeconds": 3600,
            "extra": {"currency": "USDC", "decimals": 6, "chain": "base", **explained},
        }

    def solana_entry(self) -> Json:
        return {
            "scheme": "exact",
            "network": "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp",
            "asset": "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v",
            "payTo": "2wKupLR9q6wXYppw8Gr2NvWxKBUqm4PPJKkQfoxHDBg4",
            "amount": "11500",
            "maxAmountRequired": "11500",
            "maxTimeoutSeconds": 3600,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        asked = await request.json()
        shown = request.headers.get("payment-signature") or request.headers.get("x-402-payment")
        if shown is None:
            await self._challenge(send, "Payment required")
            return
        payment = unpack(shown)
        self.payments.append(payment)
        problem = self._problem(payment)
        if problem:
            await self._challenge(send, problem)
            return
        settled = self._settle(payment["payload"])
        if settled["status"] != "0x1":
            await self._challenge(send, "settlement failed")
            return
        receipt = {
            "success": True,
            "transaction": settled["transactionHash"],
            "network": payment["accepted"]["network"],
            "payer": payment["payload"]["authorization"]["from"],
            "amount": self.amount,
        }
        made = {"request_id": secrets.token_hex(8), "status": "queued", "requests": len(asked["requests"])}
        await _reply(send, 200, made, ("payment-response", pack(receipt)))

    async def _challenge(self, send: Send, error: str) -> None:
        made = {"x402Version": 2, "error": error, "accepts": [self.entry(), self.solana_entry()]}
        await _reply(send, 402, {"error": error}, ("payment-required", pack(made)))

    def _problem(self, payment: Json) -> str:
        """What the document says must hold: the terms of the entry, unedited, and the payer's signature over them."""
        entry, accepted, terms = self.entry(), payment["accepted"], payment["payload"]["authorization"]
        if payment["x402Version"] != 2 or any(accepted[key] != entry[key] for key in _ECHOED):
            return "not an entry of ours"
        if (terms["to"].lower(), terms["value"]) != (self.pay_to.lower(), self.amount):
            return "wrong recipient or amount"
        if not int(terms["validAfter"]) <= time.time() < int(terms["validBefore"]):
            return "expired"
        return "" if _signer(entry, payment["payload"]).lower() == terms["from"].lower() else "bad signature"

    def _settle(self, payload: Json) -> Any:
        data = encode(_TRANSFER, *_values(payload).values(), bytes.fromhex(payload["signature"][2:]))
        call = {"from": self.account.address, "to": self.chain.usdc, "data": data, "gas": hex(200_000)}
        return self.chain.rpc("eth_sendTransactionSync", call)


def _values(payload: Json) -> Json:
    terms = payload["authorization"]
    numbers = {key: int(terms[key]) for key in ("value", "validAfter", "validBefore")}
    return {"from": terms["from"], "to": terms["to"], **numbers, "nonce": bytes.fromhex(terms["nonce"][2:])}


def _signer(entry: Json, payload: Json) -> str:
    message = encode_typed_data(_domain(entry), _TYPES, _values(payload))
    signer: str = Account.recover_message(message, signature=payload["signature"])
    return signer


async def _reply(send: Send, status: int, body: Json, header: tuple[str, str]) -> None:
    content = json.dumps(body).encode()
    headers = [("content-type", "application/json"), ("content-length", str(len(content))), header]
    pairs = [(name.encode(), value.encode()) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": content})
