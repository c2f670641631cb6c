"""pympp as a client: pays one URL by evm/charge, signed with PEER_KEY, and prints one JSON line.

Its task is JSON on standard input: `url`, and where they are wanted `method`, `json`, `headers`, `max_amount` (in USDC)
and `retries`. `created` lists the credentials it made, each as its challenge's id and the credential's text.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httpx
from common import emit, parsed, private_key
from eth_account import Account
from mpp import Receipt
from mpp.client.transport import Mpp
from mpp.errors import PaymentError
from mpp.methods.evm import client as evm
from mpp.methods.evm.assets import BASE_USDC


def reported(answer: httpx.Response) -> dict[str, Any]:
    receipt = answer.headers.get("payment-receipt")
    return {
        "status": answer.status_code,
        "headers": dict(answer.headers),
        "body": parsed(answer.text),
        "receipt": None if receipt is None else vars_of(Receipt.from_payment_receipt(receipt)),
    }


def vars_of(receipt: Receipt) -> dict[str, Any]:
    known = {"status": receipt.status, "method": receipt.method, "reference": receipt.reference}
    return {**known, "timestamp": receipt.timestamp.isoformat(), **(receipt.extensions or {})}


async def main() -> None:
    task = json.load(sys.stdin)
    account = Account.from_key(private_key())
    method = evm.charge(currency=BASE_USDC, account=account, max_amount=task.get("max_amount"))
    created: list[dict[str, str]] = []

    def note(event: dict[str, Any]) -> None:
        credential = event["credential"]
        created.append({"id": credential.challenge.id, "credential": credential.to_authorization()})

    line: dict[str, Any]
    try:
        async with Mpp(methods=[method], max_payment_retries=task.get("retries", 3)) as mpp:
            mpp.on_credential_created(note)
            answer = await mpp.fetch(
                task["url"], method=task.get("method", "GET"), json=task.get("json"), headers=task.get("headers")
            )
            line = reported(answer)
    except (PaymentError, httpx.HTTPError) as error:
        line = {"status": None, "error": type(error).__name__, "message": str(error)}
    emit({**line, "created": created})


asyncio.run(main())
