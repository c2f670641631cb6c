"""A local Solana with USDC and funded accounts: Surfpool's runtime (the real VM and RPC), no network.

It makes a block every 400 ms by its own clock, knows no forks, and confirms at once; finalized is 31 slots later. A
transaction that fails lands with its error, as on a cluster that is told to skip its preflight.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from ..networks.assets import default_asset
from ..protocols.base58 import b58encode
from . import packages
from .base import OTHER_FUNDS, PAYER_FUNDS, Chain
from .errors import DevnetError
from .evm import ACCOUNTS as EVM_ACCOUNTS
from .process import Server

__all__ = ["SvmAccount", "SvmDevnet"]

NETWORK: Final = "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"
TOKEN_PROGRAM: Final = "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA"
_SYSTEM_PROGRAM: Final = "1" * 32

# Its queue holds a thousand events, one for each block at least; undrained, it is full then, and the node stops.
_START: Final = """
const { Surfnet } = require(process.argv[1])
const net = Surfnet.startWithConfig(JSON.parse(process.argv[2]))
console.log(JSON.stringify({ rpc_url: net.rpcUrl, ws_url: net.wsUrl }))
setInterval(() => net.drainEvents(), 50)
"""
_LAMPORTS: Final = 100 * 10**9
_MINT_LAMPORTS: Final = 1_461_600
"""What exempts a mint's 82 bytes from rent."""


@dataclass(frozen=True)
class SvmAccount:
    """An account of the local chain; ``secret_key`` is base58 of 64 bytes, as wallets export it."""

    address: str
    secret_key: str


def _account(seed: bytes) -> SvmAccount:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    return SvmAccount(b58encode(public), b58encode(seed + public))


class SvmDevnet(Chain):
    """A running chain. Use it in a ``with`` statement, or call ``stop()``; it also ends with its process.

    ``accounts[0]`` is the seller's settlement wallet (SOL, no USDC), ``accounts[1]`` a payer with 1 000 USDC and no
    SOL, the others have 10 USDC each. Their seeds are the private keys of the EVM accounts: public, and worth nothing.
    """

    def __init__(self, *, slot_ms: int = 400) -> None:
        """Starts the chain on a free loopback port. Raises DevnetError; ToolMissing says what to install."""
        asset = default_asset(NETWORK)
        assert asset is not None
        self.network, self.usdc = NETWORK, asset.address
        self.accounts = tuple(_account(bytes.fromhex(each.private_key[2:])) for each in EVM_ACCOUNTS)
        config = json.dumps({"offline": True, "blockProductionMode": "clock", "slotTimeMs": slot_ms})
        command = (str(packages.node()), "-e", _START, str(packages.surfpool()), config)
        server = Server(command, ready='"rpc_url"')
        said: dict[str, str] = json.loads(server.announcement)
        self.ws_url = said["ws_url"]
        super().__init__(server, said["rpc_url"])

    def describe(self) -> dict[str, Any]:
        """What `x402kit devnet --json` prints of this chain."""
        accounts = [{"address": a.address, "secret_key": a.secret_key} for a in self.accounts]
        found = {"rpc_url": self.rpc_url, "network": self.network, "usdc": self.usdc, "accounts": accounts}
        return {"svm": found}

    # What a test does to the chain

    def set_lamports(self, address: str, lamports: int) -> None:
        """Gives an address so much SOL (10**9 lamports each)."""
        account = {"lamports": lamports, "owner": _SYSTEM_PROGRAM, "data": "", "executable": False}
        self.rpc("surfnet_setAccount", address, account)

    def lamports_of(self, address: str) -> int:
        """SOL of an address, in lamports."""
        found: int = self.rpc("getBalance", address, {"commitment": "processed"})["value"]
        return found

    def set_mint(self, mint: str, *, decimals: int = 6, program: str = TOKEN_PROGRAM, extensions: bytes = b"") -> None:
        """Puts a mint at an address; ``extensions`` are Token-2022's, from the account's type byte on."""
        data = mint_data(decimals)
        if extensions:
            data = data.ljust(165, b"\0") + extensions
        account = {"lamports": 10 * _MINT_LAMPORTS, "owner": program, "data": data.hex(), "executable": False}
        self.rpc("surfnet_setAccount", mint, account)

    def set_tokens(
        self, owner: str, amount: int, *, mint: str = "", state: str = "initialized", program: str = TOKEN_PROGRAM
    ) -> None:
        """Gives an owner's token account this balance, in atomic units; it is created where it is missing."""
        self.rpc("surfnet_setTokenAccount", owner, mint or self.usdc, {"amount": amount, "state": state}, program)

    def balance_of(self, address: str, mint: str = "") -> int:
        """USDC, or what ``mint`` says, of an owner; atomic units."""
        options = {"encoding": "jsonParsed", "commitment": "processed"}
        found: Any = self.rpc("getTokenAccountsByOwner", address, {"mint": mint or self.usdc}, options)["value"]
        return sum(int(each["account"]["data"]["parsed"]["info"]["tokenAmount"]["amount"]) for each in found)

    def advance(self, slots: int) -> None:
        """Lets so many slots pass at once."""
        now: int = self.rpc("getEpochInfo")["absoluteSlot"]
        self.rpc("surfnet_timeTravel", {"absoluteSlot": now + slots})

    def _fund(self) -> None:
        if self.rpc("getHealth") != "ok":
            raise DevnetError("the local Solana is not healthy")
        self.set_mint(self.usdc)
        for index, account in enumerate(self.accounts):
            self.set_tokens(account.address, (0, PAYER_FUNDS)[index] if index < 2 else OTHER_FUNDS)
        self.set_lamports(self.accounts[0].address, _LAMPORTS)


def mint_data(decimals: int) -> bytes:
    """A mint's 82 bytes: an authority that nobody has, a supply, decimals, initialized, no freezing authority."""
    some, none = (1).to_bytes(4, "little"), bytes(36)
    return some + b"\x42" * 32 + (10**18).to_bytes(8, "little") + bytes((decimals, 1)) + none
