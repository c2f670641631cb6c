"""Local chains with funded accounts, for demos and tests. Nothing here touches real money or leaves this machine."""

from .errors import ChainRefused, DevnetError, ToolMissing
from .evm import EvmAccount, EvmDevnet
from .lightning import LightningDevnet, LightningNode
from .svm import SvmAccount, SvmDevnet

__all__ = [
    "ChainRefused",
    "DevnetError",
    "EvmAccount",
    "EvmDevnet",
    "LightningDevnet",
    "LightningNode",
    "SvmAccount",
    "SvmDevnet",
    "ToolMissing",
]
