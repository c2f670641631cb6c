"""Venice's own client, unchanged, at our wallet service and our priced routes: real HTTP, money on a real chain."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from tests.support.peers import ask
from tests.support.serving import free_port, serving
from x402kit import Paywall, Tokens
from x402kit.devnet import EvmAccount, EvmDevnet
from x402kit.model import Json
from x402kit.networks import Base
from x402kit.networks.evm import address_of

KEY = bytes(31) + b"\1"
PAYER = address_of(KEY)
"""Who has nothing."""
MESSAGES = [{"role": "user", "content": "Hello"}]
CHAT = {"model": "m", "messages": MESSAGES, "max_tokens": 1000}
RATE = 10
"""Micro-dollars for a token, read or written."""


@dataclass
class Seller:
    """A seller on a chain; ``seen`` are the paths and headers of the requests, in order."""

    chain: EvmDevnet
    url: str
    paywall: Paywall
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list[tuple[str, dict[str, str]]])
    app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.seen.append((scope["path"], {name.decode(): value.decode() for name, value in scope["headers"]}))
        await self.app(scope, receive, send)

    def run(self, payer: EvmAccount, *steps: list[Any], **options: Any) -> list[Json]:
        """The client's steps, one after the other, each with what it returned and the balance that it knows then."""
        self.seen.clear()
        made: Any = ask("venice.mjs", {"url": self.url, "steps": steps, **options}, PEER_KEY=payer.private_key)
        done: list[Json] = made
        return done

    @property
    def paths(self) -> list[str]:
        return [path.removeprefix("/api/v1") for path, _ in self.seen]


def usage(written: int) -> dict[str, int]:
    return {"prompt_tokens": 3, "completion_tokens": written, "total_tokens": 3 + written}


def app_of(paywall: Paywall) -> Any:
    price = Tokens(input=f"$0.0000{RATE}/token", output=f"$0.0000{RATE}/token")

    @paywall.paid(price)
    async def chat(request: Request) -> Response:
        asked = await request.json()
        if asked.get("stream"):
            return StreamingResponse(stream(), media_type="text/event-stream")
        message = {"role": "assistant", "content": "Hi."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse({"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage(2)})

    @paywall.paid("$2.50")
    async def image(request: Request) -> Response:
        return JSONResponse({"images": ["..."]})

    async def stream() -> AsyncGenerator[str]:
        for word in ("Hi", "."):
            yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': word}}]})}\n\n"
        yield f"data: {json.dumps({'choices': [], 'usage': usage(2)})}\n\n"
        yield "data: [DONE]\n\n"

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "m"}]})

    routes = [
        Route("/api/v1/chat/completions", chat, methods=["POST"]),
        Route("/api/v1/image/generate", image, methods=["POST"]),
        Route("/api/v1/models", models),
        Mount("/api/v1/x402", paywall.wallet_service(dialect="venice", minimum="$5", maximum="$10000")),
    ]
    return paywall.protect(Starlette(routes=routes))


@pytest.fixture(scope="module")
def seller(tmp_path_factory: pytest.TempPathFactory) -> Generator[Seller]:
    port = free_port()
    with EvmDevnet() as chain:
        account = chain.accounts[0]
        rail = Base(pay_to=account.address, key=account.private_key, rpc=chain.rpc_url)
        url = f"http://127.0.0.1:{port}"
        paywall = Paywall([rail], tmp_path_factory.mktemp("seller") / "payments.db", origin=url)
        made = Seller(chain, url, paywall)
        made.app = app_of(paywall)
        with serving(made, port=port):
            yield made


def test_venices_client_tops_up_and_pays_calls_from_its_balance(seller: Seller) -> None:
    payer = seller.chain.accounts[1]
    before = seller.chain.balance_of(payer.address)
    topped, chat, stream, models, balance, moves = seller.run(
        payer,
        ["topUp", 7.25],
        ["chat", CHAT],
        ["chatStream", CHAT],
        ["models"],
        ["getBalance"],
        ["getTransactions"],
    )
    assert (topped, before - seller.chain.balance_of(payer.address)) == ({"value": None, "balance": 7.25}, 7_250_000)
    assert chat["value"]["choices"][0]["message"]["content"] == "Hi."
    assert chat["balance"] == 7.249950  # X-Balance-Remaining, after five tokens
    assert stream["value"] == ["Hi", "."]
    assert models["value"]["data"] == [{"id": "m"}]
    assert balance["balance"] == 7.2499
    assert balance["value"] == {
        "walletAddress": payer.address,
        "balanceUsd": 7.2499,
        "heldUsd": 0,
        "canConsume": True,
        "minimumTopUpUsd": 5,
        "suggestedTopUpUsd": 5,
    }
    said = moves["value"]
    assert (said["walletAddress"], said["currentBalance"]) == (payer.address, 7.2499)
    assert said["pagination"] == {"limit": 50, "offset": 0, "hasMore": False}
    kinds = [move["type"] for move in said["transactions"]]
    assert kinds == ["REFUND", "CHARGE", "REFUND", "CHARGE", "TOP_UP"]
    after = [move["balanceAfter"] for move in said["transactions"]]
    assert [after[0], after[2], after[4]] == [7.2499, 7.24995, 7.25]
    assert {move["modelId"] for move in said["transactions"][:-1]} == {"tests.test_venice_client.app_of.<locals>.chat"}
    assert seller.paths[:3] == ["/x402/top-up", "/x402/top-up", "/chat/completions"]


def test_venices_client_pages_through_its_transactions(seller: Seller) -> None:
    payer = seller.chain.accounts[2]
    seller.chain.mint(payer.address, 18_000_000)
    *_, first, second, wrong = seller.run(
        payer,
        ["topUp", 5],
        ["topUp", 6],
        ["topUp", 7],
        ["getTransactions", {"limit": 2}],
        ["getTransactions", {"limit": 2, "offset": 2}],
        ["getTransactions", {"limit": 101}],
    )
    assert [move["amount"] for move in first["value"]["transactions"]] == [7, 6]
    assert first["value"]["pagination"] == {"limit": 2, "offset": 0, "hasMore": True}
    assert [move["amount"] for move in second["value"]["transactions"]] == [5]
    assert second["value"]["pagination"] == {"limit": 2, "offset": 2, "hasMore": False}
    assert (wrong["code"], wrong["details"]) == ("API_ERROR", {"status": 400, "code": "INVALID_LIMIT"})


def test_venices_client_tops_up_by_itself_when_the_balance_is_too_low(seller: Seller) -> None:
    payer = seller.chain.accounts[3]
    before = seller.chain.balance_of(payer.address)
    poor, helped = seller.run(payer, ["chat", CHAT], ["topUp", 1])
    assert (poor["code"], poor["details"]) == ("INSUFFICIENT_BALANCE", {"currentBalance": 0, "suggestedAmount": 5})
    assert (helped["code"], helped["details"]) == ("INVALID_AMOUNT", {"minimumAmount": 5, "requestedAmount": 1})

    (chat,) = seller.run(payer, ["chat", CHAT], auto_top_up=5)
    assert chat["value"]["choices"][0]["message"]["content"] == "Hi."
    assert chat["balance"] == 4.99995
    assert seller.paths == ["/chat/completions", "/x402/top-up", "/x402/top-up", "/chat/completions"]
    assert before - seller.chain.balance_of(payer.address) == 5_000_000


def test_venices_client_without_money_is_told_why(seller: Seller) -> None:
    (said,) = seller.run(EvmAccount(PAYER, "0x" + KEY.hex()), ["topUp", 5])
    assert (said["code"], said["message"]) == ("TOP_UP_FAILED", "invalid_exact_evm_insufficient_balance")


def test_venices_payment_is_credited_once(seller: Seller) -> None:
    """E01: the same header again is the same top-up."""
    payer = seller.chain.accounts[5]
    seller.run(payer, ["topUp", 5])
    header = seller.seen[-1][1]["x-402-payment"]
    init = {"method": "POST", "headers": {"X-402-Payment": header}}
    again, balance = seller.run(payer, ["authFetch", "/api/v1/x402/top-up", init], ["getBalance"])
    assert (again["value"]["status"], again["value"]["headers"]["payment-replayed"]) == (200, "true")
    assert again["value"]["body"]["data"]["newBalance"] == 5
    assert balance["balance"] == 5
