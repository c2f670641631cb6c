"""Where money moves. ``Base``, ``BaseSepolia``, ``Evm``, ``Solana``, ``SolanaDevnet`` make rails for a paywall.

``Lightning`` makes one from a node: ``Lnd``, ``CoreLightning``, ``Phoenixd``, ``LNbits``, ``NostrWalletConnect``.

The names are loaded when they are first used: who imports only the port pays for no rail.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cln import CoreLightning
    from .evm_chain import EvmRail
    from .evm_options import EvmOptions
    from .factories import Base, BaseSepolia, Evm
    from .gas import ChainlinkFeed, FixedPrice, GasPolicy
    from .lightning import Lightning
    from .lnbits import LNbits
    from .lnd import Lnd
    from .nwc import NostrWalletConnect
    from .phoenixd import Phoenixd
    from .svm_chain import SvmRail
    from .svm_factories import Solana, SolanaDevnet
    from .svm_fees import FeePolicy, PythFeed
    from .svm_options import SvmOptions

__all__ = [
    "Base",
    "BaseSepolia",
    "ChainlinkFeed",
    "CoreLightning",
    "Evm",
    "EvmOptions",
    "EvmRail",
    "FeePolicy",
    "FixedPrice",
    "GasPolicy",
    "LNbits",
    "Lightning",
    "Lnd",
    "NostrWalletConnect",
    "Phoenixd",
    "PythFeed",
    "Solana",
    "SolanaDevnet",
    "SvmOptions",
    "SvmRail",
]

_WHERE = {
    "Base": "factories",
    "BaseSepolia": "factories",
    "ChainlinkFeed": "gas",
    "CoreLightning": "cln",
    "Evm": "factories",
    "EvmOptions": "evm_options",
    "EvmRail": "evm_chain",
    "FeePolicy": "svm_fees",
    "FixedPrice": "gas",
    "GasPolicy": "gas",
    "LNbits": "lnbits",
    "Lightning": "lightning",
    "Lnd": "lnd",
    "NostrWalletConnect": "nwc",
    "Phoenixd": "phoenixd",
    "PythFeed": "svm_fees",
    "Solana": "svm_factories",
    "SolanaDevnet": "svm_factories",
    "SvmOptions": "svm_options",
    "SvmRail": "svm_chain",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f".{_WHERE[name]}", __name__), name)
    return found
