"""What local networks have in common: how they end, and for chains, the one process that answers JSON-RPC."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Final, Self

from .process import Server
from .rpc import JsonRpc

__all__ = ["OTHER_FUNDS", "PAYER_FUNDS", "Chain", "Devnet"]

PAYER_FUNDS: Final = 1_000_000_000
"""What ``accounts[1]`` has: 1 000 USDC, atomic units."""
OTHER_FUNDS: Final = 10_000_000
"""…and those after it: 10 USDC each."""


class Devnet(ABC):
    """A local network that runs. Use it in a ``with`` statement, or call ``stop()``; it also ends with its process."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def stop(self) -> None:
        """Ends the network; its state is gone. May be called again."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What `x402kit devnet --json` prints of this network."""


class Chain(Devnet):
    """A chain of one node."""

    def __init__(self, server: Server, rpc_url: str) -> None:
        """Funds the accounts; where that fails, the node is stopped."""
        self._server, self.rpc_url = server, rpc_url
        self._rpc = JsonRpc(rpc_url.removeprefix("http://"))
        try:
            self._fund()
        except BaseException:
            self.stop()
            raise

    @abstractmethod
    def _fund(self) -> None:
        """Brings token and money to the new chain. Raises DevnetError."""

    @property
    def pid(self) -> int:
        """The node's process id."""
        return self._server.pid

    @property
    def running(self) -> bool:
        """Whether the node's process is there."""
        return self._server.running

    def stop(self) -> None:
        """Ends the chain; its state is gone. May be called again."""
        self._rpc.close()
        self._server.stop()

    def rpc(self, method: str, *params: Any) -> Any:
        """Any JSON-RPC call, those that control the node included. Raises ChainRefused for an error answer."""
        return self._rpc(method, *params)
