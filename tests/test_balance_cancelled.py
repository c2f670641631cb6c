"""A call from a balance, a metered payment, a top-up and a job are stopped at every single step: nothing stays held.

The trap cancels at the n-th call of the store, while it is under way or right after it, for every n until there are no
more; or it stops the whole paywall there.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from tests.support.rails import OfflineRail
from tests.support.till import Till, event, make, part, reply, stream, usage, use
from tests.support.trap import Trap
from x402kit.ledger.open import store_of
from x402kit.ledger.port import Store

START = 1_000_000
STEPS = ("get", "claim", "take", "move", "release", "balance", "reserve", "capture", "void", "hold", "defer_hold")
MORE = ("serve_held", "entry", "entries")
LEASE = 0.3


async def whole(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.sleep(0)
    await reply(send, json.dumps({"usage": use(25)}).encode())


async def streamed(scope: Scope, receive: Receive, send: Send) -> None:
    await stream(send, event({"choices": [{"delta": {"content": "a"}}]}))
    await asyncio.sleep(0)
    await send(part(usage(25) + event("[DONE]"), more=False))


async def job(scope: Scope, receive: Receive, send: Send) -> None:
    scope["x402kit"].defer(1)
    await reply(send, b'"queued"', 202)


CALLS: dict[str, Any] = {
    "balance": ("/fixed", whole, True),
    "balance with a key": ("/fixed", whole, True),
    "balance, metered": ("/metered", whole, True),
    "balance, streamed": ("/metered", streamed, True),
    "balance, job": ("/fixed", job, True),
    "payment, metered": ("/metered", whole, False),
    "payment, streamed": ("/metered", streamed, False),
    "payment, job": ("/fixed", job, False),
    "top-up": ("/v1/x402/top-up", whole, False),
}


def opened(ledger: str, rail: OfflineRail | None = None) -> tuple[Till, Trap]:
    store: Any = store_of(ledger)
    store._lease_ms = int(LEASE * 1000)
    till = make(store, rail=rail, drain_seconds=0.2, settle_seconds=5)
    return till, Trap((store, STEPS + MORE))


async def nothing_held(till: Till) -> None:
    """Within the lease, and one pass of the keeper."""
    end = time.monotonic() + 8
    while (await till.balance()).held:
        assert time.monotonic() < end, [entry.key for entry in await till.entries()][-3:]
        await asyncio.sleep(0.05)
    await till.check()
    store: Store = till.store
    assert not any(store._held.values())  # type: ignore[attr-defined]  # pyright: ignore  # what is kept alive


async def credentials(till: Till, kind: str, path: str, proved: bool) -> tuple[dict[str, str], Any]:
    body = {"amount_usdc": "0.5"} if kind == "top-up" else None
    if not proved:
        return {"PAYMENT-SIGNATURE": (await till.payment(path, body)).v2()}, body
    key = {"Idempotency-Key": str(time.monotonic_ns())} if kind.endswith("key") else {}
    return {**till.proof(), **key}, body


@pytest.mark.parametrize("after", [False, True], ids=["during", "after"])
@pytest.mark.parametrize("kind", CALLS)
async def test_I6_a_call_that_is_cancelled_at_any_step_holds_nothing(ledger: str, kind: str, after: bool) -> None:
    path, app, proved = CALLS[kind]
    till, trap = opened(ledger)
    await till.credit(START)
    till.playing.app = app
    number = 0
    for number in range(40):
        headers, body = await credentials(till, kind, path, proved)
        request = asyncio.create_task(till.ask(path, headers, body))
        trap.set(number, after, request.cancel)
        await asyncio.wait((request,))
        sprung, trap.left = trap.left < 0, -1
        if not sprung:
            break
        if kind.endswith("key") or not proved:  # who comes back has the goods, or is told what became of them
            await until_decided(till, path, {**headers, **(till.proof() if proved else {})}, body)
    assert 0 < number < 39
    await nothing_held(till)
    await till.paywall.stop()


async def until_decided(till: Till, path: str, headers: dict[str, str], body: Any) -> None:
    end = time.monotonic() + 8
    while True:
        if "X-Sign-In-With-X" in headers:
            headers = {**headers, **till.proof()}
        answer = await till.ask(path, headers, body)
        if answer.status in (200, 202):
            return
        assert answer.status in (409, 503, 504), (answer.status, answer.body)
        assert time.monotonic() < end
        await asyncio.sleep(0.03)


@pytest.mark.parametrize("kind", CALLS)
async def test_J09_a_server_that_is_stopped_at_any_step_leaves_nothing_held(ledger: str, kind: str) -> None:
    path, app, proved = CALLS[kind]
    till, trap = opened(ledger)
    await till.credit(START)
    number = 0
    for number in range(40):
        till.playing.app = app
        headers, body = await credentials(till, kind, path, proved)
        stopping: list[asyncio.Task[None]] = []
        stop = till.paywall.stop
        request = asyncio.create_task(till.ask(path, headers, body))
        trap.set(number, True, lambda into=stopping, stop=stop: into.append(asyncio.create_task(stop())))  # type: ignore[misc]
        await asyncio.wait((request,), timeout=5)
        assert request.done(), number
        await asyncio.gather(*stopping)
        trap.left = -1
        if not stopping:
            break
        payments = till.payments
        till, trap = opened(ledger, till.rail)
        till.payments = payments
        await till.start()
    assert 0 < number < 39
    await nothing_held(till)
    await till.paywall.stop()
