"""The port's nonce allocator in memory: the ledger's stores are the durable ones."""

from __future__ import annotations

from collections import defaultdict

__all__ = ["MemoryNonces"]


class MemoryNonces:
    """Hands out the lowest free nonce of each wallet."""

    def __init__(self) -> None:
        self.taken: dict[str, dict[int, str]] = defaultdict(dict)
        self.freed: list[int] = []

    async def take_nonce(self, wallet: str, payment_id: str, floor: int) -> int:
        nonce = floor
        while nonce in self.taken[wallet]:
            nonce += 1
        self.taken[wallet][nonce] = payment_id
        return nonce

    async def free_nonce(self, wallet: str, nonce: int) -> None:
        del self.taken[wallet][nonce]
        self.freed.append(nonce)
