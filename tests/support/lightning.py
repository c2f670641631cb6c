"""Lightning in tests: two real nodes for each test process, started when the first test asks for them.

Beside the fixture, what is done to a node behind the back of those who talk to it.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from x402kit.devnet import LightningDevnet, LightningNode

__all__ = ["ask", "balance_of", "cancel", "holding", "lightning", "pay_part", "send_parts_back"]


@pytest.fixture(scope="session")
def lightning() -> Iterator[LightningDevnet]:
    """The seller's node and the payer's. What a test does to them stays: pay small, and hold only for yourself."""
    with LightningDevnet() as nodes:
        yield nodes


async def ask(node: LightningNode, method: str, path: str, **body: Any) -> Any:
    """A call of LND's API, or of the devnet's own beside it."""
    headers = {"Grpc-Metadata-macaroon": node.macaroon}
    async with httpx.AsyncClient(headers=headers, timeout=20, trust_env=False) as client:
        response = await client.request(method, node.url + path, json=body or None)
        assert response.status_code == 200, response.text
        return response.json()


async def balance_of(node: LightningNode) -> int:
    """Msat that the node may spend; payments under way are missing."""
    found: str = (await ask(node, "GET", "/v1/balance/channels"))["local_balance"]["msat"]
    return int(found)


@asynccontextmanager
async def holding(node: LightningNode) -> AsyncGenerator[None]:
    """Inside, the node holds what is paid to it and claims nothing (G03); at the end it claims what has come."""
    await ask(node, "POST", "/x402kit/pause", paused=True)
    try:
        yield
    finally:
        await ask(node, "POST", "/x402kit/pause", paused=False)


async def pay_part(node: LightningNode, bolt11: str) -> None:
    """Half of an invoice arrives, the other half goes astray (G06)."""
    await ask(node, "POST", "/x402kit/pay-part", payment_request=bolt11, fee_limit_msat="10000")


async def send_parts_back(node: LightningNode) -> None:
    """The time passes after which a node sends back parts that wait for others."""
    for _ in range(4):
        await ask(node, "POST", "/x402kit/tick")


async def cancel(node: LightningNode, payment_hash: str) -> None:
    """The seller gives an invoice up."""
    await ask(node, "POST", "/v2/invoices/cancel", payment_hash=b64encode(bytes.fromhex(payment_hash)).decode())
