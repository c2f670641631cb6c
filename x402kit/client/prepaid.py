"""A payer's balance at one seller: the client of its wallet service, sync and async. Made by ``Payer``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from types import TracebackType
from typing import Any, Final, TypeVar

import httpx

from .exchange import NETWORK, PROVES, TOP_UP
from .receipts import payment_of
from .wallet_service import (
    PAGE,
    Operations,
    Page,
    Reply,
    Request,
    TopUp,
    Transaction,
    WalletBalance,
    WalletInfo,
    Withdrawal,
)

__all__ = ["AsyncPrepaidWallet", "PrepaidWallet"]

T = TypeVar("T")
GAS = "$0.05"
"""What a settlement may add to a top-up, if nothing else is said."""
ANSWER_MAX: Final = 1024 * 1024
"""Bytes of a service's answer."""


class _Service:
    """Where the service is, and what is said to it."""

    def __init__(self, base_url: str, operations: Operations) -> None:
        self.base_url = base_url.rstrip("/")
        self._operations = operations

    def _options(self, request: Request) -> dict[str, Any]:
        hints = {TOP_UP: request.top_up, PROVES: request.proves, NETWORK: self._operations.network}
        made: dict[str, Any] = {"method": request.method, "url": self.base_url + request.path, "extensions": hints}
        return made if request.body is None else {**made, "json": request.body}


class _Body:
    """What an answer says, as far as it is worth reading."""

    def __init__(self) -> None:
        self.data = b""

    def add(self, chunk: bytes) -> bool:
        """Whether there may be more that is worth reading."""
        self.data += chunk
        return len(self.data) <= ANSWER_MAX

    def reply(self, answer: httpx.Response) -> Reply:
        """What is over the limit is no answer that can be read."""
        return Reply(answer.status_code, self.data[: ANSWER_MAX + 1], payment_of(answer))


def _more(page: Page, before: str) -> str:
    """The cursor of the next page; empty at the end, and where a service would lead round in a circle for ever."""
    return page.cursor if page.transactions and page.cursor != before else ""


class PrepaidWallet(_Service):
    """The balance at one seller. Amounts given are dollars as text, ``"1.00"``; amounts returned are atomic units.

    The methods raise ``WalletServiceError``, ``ConfigError`` for what is no amount, and what any call of the payer's
    may raise.
    """

    def __init__(self, base_url: str, operations: Operations, client: httpx.Client, *, owns: bool) -> None:
        super().__init__(base_url, operations)
        self._client, self._owns = client, owns

    def info(self) -> WalletInfo:
        """What the service accepts. Takes no proof."""
        return self._run(self._operations.info())

    def top_up(self, amount: str, *, gas: str = GAS) -> TopUp:
        """Pay for ``amount`` of balance; ``gas`` is what the seller may add for the settlement.

        In place of ``Limits.per_call`` the cap is the sum of both; ``per_hour``, ``per_day`` and ``approve`` hold as
        for any payment. After a lost answer the same call shows the same payment, and is credited once.
        """
        return self._run(self._operations.top_up(amount, gas))

    def balance(self) -> WalletBalance:
        """What is there."""
        return self._run(self._operations.balance())

    def transactions(self, limit: int | None = None) -> Generator[Transaction]:
        """The account's moves, newest first, at most ``limit``; asks for a page when it is needed."""
        cursor, left = "", limit
        while left is None or left > 0:
            page = self._run(self._operations.page(cursor, PAGE if left is None else min(left, PAGE)))
            yield from page.transactions[:left]
            cursor, left = _more(page, cursor), None if left is None else left - len(page.transactions)
            if not cursor:
                return

    def withdraw(self, amount: str | None = None) -> Withdrawal:
        """Have ``amount``, or all of it, back in the wallet. After a lost answer the same call means the same one."""
        return self._run(self._operations.withdraw(amount))

    def _run(self, steps: Generator[Request, Reply, T]) -> T:
        try:
            request = next(steps)
            while True:
                body = _Body()
                with self._client.stream(**self._options(request)) as answer:
                    for chunk in answer.iter_bytes():
                        if not body.add(chunk):
                            break
                request = steps.send(body.reply(answer))
        except StopIteration as stop:
            made: T = stop.value
            return made

    def close(self) -> None:
        """Close the HTTP client, unless it was given."""
        if self._owns:
            self._client.close()

    def __enter__(self) -> PrepaidWallet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class AsyncPrepaidWallet(_Service):
    """``PrepaidWallet``, asynchronously."""

    def __init__(self, base_url: str, operations: Operations, client: httpx.AsyncClient, *, owns: bool) -> None:
        super().__init__(base_url, operations)
        self._client, self._owns = client, owns

    async def info(self) -> WalletInfo:
        """What the service accepts."""
        return await self._run(self._operations.info())

    async def top_up(self, amount: str, *, gas: str = GAS) -> TopUp:
        """Pay for ``amount`` of balance; see ``PrepaidWallet.top_up``."""
        return await self._run(self._operations.top_up(amount, gas))

    async def balance(self) -> WalletBalance:
        """What is there."""
        return await self._run(self._operations.balance())

    async def transactions(self, limit: int | None = None) -> AsyncGenerator[Transaction]:
        """The account's moves, newest first, at most ``limit``."""
        cursor, left = "", limit
        while left is None or left > 0:
            page = await self._run(self._operations.page(cursor, PAGE if left is None else min(left, PAGE)))
            for transaction in page.transactions[:left]:
                yield transaction
            cursor, left = _more(page, cursor), None if left is None else left - len(page.transactions)
            if not cursor:
                return

    async def withdraw(self, amount: str | None = None) -> Withdrawal:
        """Have ``amount``, or all of it, back in the wallet."""
        return await self._run(self._operations.withdraw(amount))

    async def _run(self, steps: Generator[Request, Reply, T]) -> T:
        try:
            request = next(steps)
            while True:
                body = _Body()
                async with self._client.stream(**self._options(request)) as answer:
                    async for chunk in answer.aiter_bytes():
                        if not body.add(chunk):
                            break
                request = steps.send(body.reply(answer))
        except StopIteration as stop:
            made: T = stop.value
            return made

    async def close(self) -> None:
        """Close the HTTP client, unless it was given."""
        if self._owns:
            await self._client.aclose()

    async def __aenter__(self) -> AsyncPrepaidWallet:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()
