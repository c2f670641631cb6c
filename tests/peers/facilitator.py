"""The x402 package as a facilitator: POST /verify, POST /settle, GET /supported, on the chain at --rpc-url.

Prints its address as one JSON line, then runs until SIGTERM. `GET /calls` says how often each was asked.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from common import BASE, is_solana, private_key, serve
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from solders.keypair import Keypair
from x402 import x402FacilitatorSync
from x402.mechanisms.evm import FacilitatorWeb3Signer
from x402.mechanisms.evm.exact import register_exact_evm_facilitator
from x402.mechanisms.svm import FacilitatorKeypairSigner
from x402.mechanisms.svm.exact import register_exact_svm_facilitator
from x402.schemas import PaymentError, parse_payment_payload, parse_payment_requirements


def settling(rpc_url: str, network: str, confirmation_timeout: float) -> x402FacilitatorSync:
    """On an EVM network, or on Solana (with a key in base58), where the package's own time-out of 30 s counts."""
    made = x402FacilitatorSync()
    if is_solana(network):
        keypair = Keypair.from_base58_string(private_key())
        return register_exact_svm_facilitator(made, FacilitatorKeypairSigner(keypair, rpc_url), networks=network)
    signer = FacilitatorWeb3Signer(private_key(), rpc_url, confirmation_timeout_seconds=confirmation_timeout)
    return register_exact_evm_facilitator(made, signer, networks=network)


def build(rpc_url: str, network: str, confirmation_timeout: float) -> FastAPI:
    facilitator = settling(rpc_url, network, confirmation_timeout)
    app = FastAPI(exception_handlers={ValueError: _refused, KeyError: _refused, PaymentError: _refused})
    calls: Counter[str] = Counter()

    def parts(body: dict[str, Any]) -> tuple[Any, Any]:
        payload = parse_payment_payload(body["paymentPayload"])
        return payload, parse_payment_requirements(payload.x402_version, body["paymentRequirements"])

    # Not async: the package's signer blocks on the chain, so the framework's threads carry these.
    @app.post("/verify")
    def verify(body: dict[str, Any]) -> dict[str, Any]:
        calls["verify"] += 1
        return facilitator.verify(*parts(body)).model_dump(by_alias=True, exclude_none=True)

    @app.post("/settle")
    def settle(body: dict[str, Any]) -> dict[str, Any]:
        calls["settle"] += 1
        return facilitator.settle(*parts(body)).model_dump(by_alias=True, exclude_none=True)

    @app.get("/supported")
    def supported() -> dict[str, Any]:
        calls["supported"] += 1
        return facilitator.get_supported().model_dump(by_alias=True, exclude_none=True)

    @app.get("/calls")
    def count() -> dict[str, int]:
        return dict(calls)

    return app


async def _refused(request: Request, error: Exception) -> JSONResponse:
    """What the package raises for a request that it cannot read or route."""
    return JSONResponse({"error": f"{type(error).__name__}: {error}"}, status_code=400)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rpc-url", required=True, metavar="URL")
    parser.add_argument("--network", default=BASE)
    parser.add_argument("--confirmation-timeout", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    serve(build(arguments.rpc_url, arguments.network, arguments.confirmation_timeout), arguments.port)


main()
