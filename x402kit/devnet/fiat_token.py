"""Circle's own FiatToken on a local chain, at the address and with the name it has on the chain that is imitated.

The compiled runtime of proxy, implementation (V2_2) and signature library is put in place as it is, and then set up by
the token's own initializers, so its own rules apply: EIP-3009, EIP-1271, blacklist, pause, minters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..money import Asset
from ..networks.evm import keccak
from .contracts import encode, encode_arguments
from .errors import DevnetError
from .packages import token_artifacts
from .rpc import JsonRpc

__all__ = ["MINTER", "install", "send", "wallet_init_code"]

MINTER = "0x1111111111111111111111111111111111111111"
"""Owner, master minter, minter, pauser and blacklister of the token; the node signs for it."""

_PROXY_ADMIN = "0x2222222222222222222222222222222222222222"
_LOST_AND_FOUND = "0x3333333333333333333333333333333333333333"
_LIBRARY = "0x4444444444444444444444444444444444444444"
_IMPLEMENTATION = "0x5555555555555555555555555555555555555555"


def install(rpc: JsonRpc, asset: Asset) -> None:
    """Puts the token at ``asset.address`` and lets ``MINTER`` mint. Raises DevnetError."""
    library = _artifact("util/SignatureChecker")["deployedBytecode"]
    # A deployed library starts with PUSH20 and its own address, left zero by the compiler.
    rpc("anvil_setCode", _LIBRARY, "0x73" + _LIBRARY[2:] + library[44:])
    rpc("anvil_setCode", _IMPLEMENTATION, _linked(_artifact("v2/FiatTokenV2_2"), _LIBRARY))
    rpc("anvil_setCode", asset.address, _artifact("v1/FiatTokenProxy")["deployedBytecode"])
    for slot, value in (("implementation", _IMPLEMENTATION), ("admin", _PROXY_ADMIN)):
        key = keccak(f"org.zeppelinos.proxy.{slot}".encode()).hex()
        rpc("anvil_setStorageAt", asset.address, "0x" + key, "0x" + value[2:].rjust(64, "0"))
    rpc("anvil_setBalance", MINTER, hex(10**24))
    rpc("anvil_impersonateAccount", MINTER)
    first = "initialize(string,string,string,uint8,address,address,address,address)"
    for data in (
        encode(first, asset.name, asset.symbol, "USD", asset.decimals, MINTER, MINTER, MINTER, MINTER),
        encode("initializeV2(string)", asset.name),
        encode("initializeV2_1(address)", _LOST_AND_FOUND),
        encode("initializeV2_2(address[],string)", (), asset.symbol),
        encode("configureMinter(address,uint256)", MINTER, 2**255),
    ):
        send(rpc, asset.address, data)


def send(rpc: JsonRpc, to: str | None, data: str) -> dict[str, Any]:
    """Sends a transaction as ``MINTER`` and returns its receipt; ``to`` None deploys.

    The chain must be mining by itself. Raises ChainRefused with the contract's reason if it fails.
    """
    transaction = {"from": MINTER, "data": data} | ({"to": to} if to else {})
    receipt: dict[str, Any] = rpc("eth_sendTransactionSync", transaction)
    if receipt["status"] != "0x1":
        rpc("eth_call", transaction, "latest")  # raises with the contract's reason
        raise DevnetError(f"the transaction failed: {receipt['transactionHash']}")
    return receipt


def wallet_init_code(owner: str) -> str:
    """Creation code, in hex, of Circle's EIP-1271 test wallet: it accepts what ``owner`` signed. Raises ToolMissing."""
    code: str = _artifact("test/MockERC1271Wallet")["bytecode"]
    return code + encode_arguments(["address"], [owner]).hex()


def _artifact(path: str) -> dict[str, Any]:
    folder: Path = token_artifacts() / f"{path}.sol"
    artifact: dict[str, Any] = json.loads((folder / f"{folder.stem}.json").read_text())
    return artifact


def _linked(artifact: dict[str, Any], library: str) -> str:
    code: str = artifact["deployedBytecode"]
    for libraries in artifact["deployedLinkReferences"].values():
        for references in libraries.values():
            for reference in references:
                at = 2 + 2 * reference["start"]
                code = code[:at] + library[2:] + code[at + 2 * reference["length"] :]
    return code
