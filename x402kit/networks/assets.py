"""The assets that we know, by network: address, symbol, decimals and EIP-712 domain (wire.md 2.7).

Decimals and domains are taken from here and never from a challenge or an echo (M05, B01). An asset that is not in the
table can be used only where the operator gives the whole ``Asset``.
"""

from __future__ import annotations

from typing import Final

from ..money import Asset

__all__ = ["DEFAULTS", "TESTNETS", "default_asset", "find_asset"]

_ROWS: Final = (
    ("eip155:8453", "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", "USDC", 6, "USD Coin", "2"),
    ("eip155:84532", "0x036CbD53842c5426634e7929541eC2318f3dCF7e", "USDC", 6, "USDC", "2"),
    ("eip155:1", "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48", "USDC", 6, "USD Coin", "2"),
    ("eip155:43114", "0xB97EF9Ef8734C71904D8002F8b6Bc66Dd9c48a6E", "USDC", 6, "USD Coin", "2"),
    ("eip155:137", "0x3c499c542cEF5E3811e1192ce70d8cC03d5c3359", "USDC", 6, "USD Coin", "2"),
    ("eip155:42161", "0xaf88d065e77c8cC2239327C5EDb3A432268e5831", "USDC", 6, "USD Coin", "2"),
    ("eip155:421614", "0x75faf114eafb1BDbe2F0316DF893fd58CE46AA4d", "USDC", 6, "USD Coin", "2"),
    ("eip155:42220", "0xcebA9300f2b948710d2653dD7B07f33A8B32118C", "USDC", 6, "USDC", "2"),
    ("eip155:11142220", "0x01C5C0122039549AD1493B8220cABEdD739BC44E", "USDC", 6, "USDC", "2"),
    ("eip155:1329", "0xe15fC38F6D8c56aF07bbCBe3BAf5708A2Bf42392", "USDC", 6, "USDC", "2"),
    ("eip155:1328", "0x4fCF1784B31630811181f670Aea7A7bEF803eaED", "USDC", 6, "USDC", "2"),
    ("eip155:143", "0x754704Bc059F8C67012fEd69BC8A327a5aafb603", "USDC", 6, "USDC", "2"),
    ("eip155:10143", "0x534b2f3A21130d7a60830c2Df862319e593943A3", "USDC", 6, "USDC", "2"),
    ("solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp", "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v", "USDC", 6, "", ""),
    ("solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1", "4zMMC9srt5Ri5X14GAgXhaHii3GnPAEERYPJgZJDncDU", "USDC", 6, "", ""),
    ("solana:4uhcVJyU9pJkvQyS88uRDiswHXSCkY3z", "4zMMC9srt5Ri5X14GAgXhaHii3GnPAEERYPJgZJDncDU", "USDC", 6, "", ""),
)

DEFAULTS: Final[dict[str, Asset]] = {row[0]: Asset(*row) for row in _ROWS}
"""CAIP-2 network → the asset that a price in dollars means there."""

_KNOWN: Final = {(asset.network, asset.address.lower()): asset for asset in DEFAULTS.values()}

TESTNETS: Final = frozenset(
    (
        "bip122:000000000933ea01ad0ee984209779ba",
        "bip122:00000008819873e925422c1ff0f99f7c",
        "eip155:84532",
        "eip155:421614",
        "eip155:11142220",
        "eip155:1328",
        "eip155:10143",
        "eip155:31337",
        "solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1",
        "solana:4uhcVJyU9pJkvQyS88uRDiswHXSCkY3z",
    )
)
"""Networks whose money is worth nothing: never mixed with the others in one paywall (L07)."""


def default_asset(network: str) -> Asset | None:
    """The asset that dollars mean on a network, or None where we know none."""
    return DEFAULTS.get(network)


def find_asset(network: str, address: str) -> Asset | None:
    """The known asset at an address, whatever the address's case, or None."""
    return _KNOWN.get((network, address.lower()))
