"""What goes wrong with a local chain. No real money is ever involved.

X402KitError
  DevnetError           the chain did not start, or did not do what it was told
    ToolMissing         Node.js, npm or the chain's binary is not on this machine; the message names what to do
    ChainRefused        the node answered a call with an error; carries its code, message and data
"""

from __future__ import annotations

from typing import Any

from ..errors import X402KitError

__all__ = ["ChainRefused", "DevnetError", "ToolMissing"]


class DevnetError(X402KitError):
    """A local chain could not be started or used."""


class ToolMissing(DevnetError):
    """Something that the local chain is made of is not on this machine and could not be fetched."""


class ChainRefused(DevnetError):
    """The node answered with a JSON-RPC error; a revert's reason stands in ``message``."""

    def __init__(self, method: str, code: int, message: str, data: Any = None) -> None:
        self.method, self.code, self.message, self.data = method, code, message, data
        super().__init__(f"{method}: {message} ({code})")
