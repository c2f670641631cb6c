"""Two real Lightning nodes on a chain of their own that is made up: the seller's and the payer's, with one channel.

Invoices, onions, HTLCs and preimages are real; no block and no bitcoin is. Both answer in the shape of LND's REST API,
so that ``networks.lnd.Lnd`` talks to them as to any LND.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..networks.lightning_port import REGTEST
from . import packages
from .base import Devnet
from .process import Server

__all__ = ["LightningDevnet", "LightningNode"]

_SCRIPT: Final = Path(__file__).parent / "lightning_node" / "main.mjs"


@dataclass(frozen=True)
class LightningNode:
    """One of the nodes. ``macaroon`` (hex) may do everything, ``invoice_macaroon`` only what concerns invoices.

    The macaroons are public and worth nothing.
    """

    url: str
    pubkey: str
    macaroon: str
    invoice_macaroon: str
    network: str = REGTEST


class LightningDevnet(Devnet):
    """Two running nodes. Use it in a ``with`` statement, or call ``stop()``; they also end with their process.

    The channel holds 10 000 000 sat, of which the seller has 4 000 000 at the start; each keeps 1 % in reserve. With
    ``hub`` a third node stands between the two, which forwards for 1000 msat each time.
    """

    def __init__(self, *, hub: bool = False) -> None:
        """Starts both nodes, each on a free loopback port. Raises DevnetError; ToolMissing says what to install."""
        command = (str(packages.node("Lightning")), str(_SCRIPT), str(packages.lightning()), *(("hub",) if hub else ()))
        self.network = REGTEST
        self._server = Server(command, ready='"nodes"')
        said: list[dict[str, str]] = json.loads(self._server.announcement)["nodes"]
        self.seller, self.payer = (LightningNode(**node) for node in said)

    @property
    def pid(self) -> int:
        """The process id; both nodes live in one process."""
        return self._server.pid

    @property
    def running(self) -> bool:
        """Whether the nodes' process is there."""
        return self._server.running

    def stop(self) -> None:
        """Ends the nodes; their state is gone. May be called again."""
        self._server.stop()

    def describe(self) -> dict[str, Any]:
        """What `x402kit devnet --lightning --json` prints of these nodes: the seller's, then the payer's."""
        nodes = [
            {
                "url": node.url,
                "macaroon": node.macaroon,
                "invoice_macaroon": node.invoice_macaroon,
                "pubkey": node.pubkey,
            }
            for node in (self.seller, self.payer)
        ]
        return {"lightning": {"network": self.network, "nodes": nodes}}
