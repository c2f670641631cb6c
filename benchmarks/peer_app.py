"""The `x402` package's own middleware before the same handler, its facilitator in process, the chain stubbed.

Runs in .venv-peers. The facilitator verifies the EIP-3009 signature for real, as the package does it, with coincurve
installed; what it asks of a chain is answered at once.
"""

from __future__ import annotations

import os
import time
from typing import Any

from eth_account import Account
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from x402 import x402Facilitator, x402ResourceServer
from x402.http import PaymentOption
from x402.http.middleware.fastapi import PaymentMiddlewareASGI
from x402.http.types import RouteConfig
from x402.mechanisms.evm.exact import register_exact_evm_facilitator, register_exact_evm_server
from x402.mechanisms.evm.types import TransactionReceipt

NETWORKS = ("eip155:8453", "eip155:137")
PAY_TO = "0x" + "11" * 20
TOKENS = ("0x833589fcd6edb6e08f4c7c32d4f71b54bda02913", "0x3c499c542cef5e3811e1192ce70d8cc03d5c3359")


class Chain:
    """A `FacilitatorEvmSigner` whose chain agrees with everything: payers have no code, every transaction is mined."""

    def get_addresses(self) -> list[str]:
        return [PAY_TO]

    def read_contract(self, *_: Any) -> Any:
        return 10**18

    def write_contract(self, *_: Any, **__: Any) -> str:
        return "0x" + os.urandom(32).hex()

    def wait_for_transaction_receipt(self, tx_hash: str) -> TransactionReceipt:
        return TransactionReceipt(status=1, block_number=1, tx_hash=tx_hash)

    def get_code(self, address: str) -> bytes:
        return b"\x60" if address.lower() in TOKENS else b""

    def get_balance(self, address: str, token_address: str) -> int:
        return 10**18

    def get_chain_id(self) -> int:
        return 8453


async def weather(request: Request) -> Response:
    return JSONResponse({"weather": "sunny", "temperature": 21})


def build() -> Starlette:
    """`/free`, and `/weather` for a cent with two offers."""
    facilitator = x402Facilitator()
    register_exact_evm_facilitator(facilitator, Chain(), networks=list(NETWORKS))
    server = x402ResourceServer(facilitator)
    options = []
    for network in NETWORKS:
        register_exact_evm_server(server, networks=network)
        options.append(PaymentOption(scheme="exact", pay_to=PAY_TO, price="$0.01", network=network))
    app = Starlette(routes=[Route("/free", weather), Route("/weather", weather)])
    route = RouteConfig(accepts=options, mime_type="application/json")
    app.add_middleware(PaymentMiddlewareASGI, routes={"GET /weather": route}, server=server)
    return app


class Payer:
    """Signs payments by hand: what signing costs is not measured."""

    def __init__(self) -> None:
        self._account = Account.create()

    def pay(self, offer: dict[str, Any]) -> dict[str, Any]:
        times = {"validAfter": 0, "validBefore": int(time.time()) + 300}
        nonce = os.urandom(32)
        message = {"from": self._account.address, "to": offer["payTo"], "value": int(offer["amount"]), **times}
        signed = self._account.sign_typed_data(
            {
                "name": offer["extra"]["name"],
                "version": offer["extra"]["version"],
                "chainId": int(offer["network"].split(":")[1]),
                "verifyingContract": offer["asset"],
            },
            {"TransferWithAuthorization": _FIELDS},
            {**message, "nonce": nonce},
        )
        authorization = {**{key: str(value) for key, value in message.items()}, "nonce": "0x" + nonce.hex()}
        payload = {"signature": "0x" + bytes(signed.signature).hex(), "authorization": authorization}
        return {"x402Version": 2, "accepted": offer, "payload": payload}


_FIELDS = [
    {"name": name, "type": kind}
    for name, kind in (
        ("from", "address"),
        ("to", "address"),
        ("value", "uint256"),
        ("validAfter", "uint256"),
        ("validBefore", "uint256"),
        ("nonce", "bytes32"),
    )
]
