"""Where money moves. ``Base``, ``BaseSepolia`` and ``Evm`` make rails; a paywall takes a list of them.

The names are loaded when they are first used: who imports only the port pays for no rail.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evm_chain import EvmRail
    from .evm_options import EvmOptions
    from .factories import Base, BaseSepolia, Evm
    from .gas import ChainlinkFeed, FixedPrice, GasPolicy

__all__ = [
    "Base",
    "BaseSepolia",
    "ChainlinkFeed",
    "Evm",
    "EvmOptions",
    "EvmRail",
    "FixedPrice",
    "GasPolicy",
]

_WHERE = {
    "Base": "factories",
    "BaseSepolia": "factories",
    "ChainlinkFeed": "gas",
    "Evm": "factories",
    "EvmOptions": "evm_options",
    "EvmRail": "evm_chain",
    "FixedPrice": "gas",
    "GasPolicy": "gas",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f".{_WHERE[name]}", __name__), name)
    return found
