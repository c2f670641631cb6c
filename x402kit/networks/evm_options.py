"""The settings of an EVM rail that most sellers leave as they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

__all__ = ["EvmOptions"]


@dataclass(frozen=True, slots=True)
class EvmOptions:
    """What is rarely set.

    ``max_fee_per_gas``: the most that we pay for a unit of gas, in wei; by default as in evm_fees.py. ``gas_limit``,
    ``contract_gas_limit``: absolute limits of a settlement, for payers with a key and for contract wallets.
    ``reserve_settlements``: how many the wallet must be able to pay for to be ready. ``contract_wallets``: whether
    EIP-1271 wallets may pay. ``erc6492_factories``:
    see evm_verify.py. ``final_depth``: blocks until a settlement is no longer watched. ``quorum``: how many of the RPC
    URLs must agree on an outcome of at least ``quorum_above`` atomic units (I-10). ``poll_seconds``: first and longest
    pause between looks at a pending transaction. ``rpc_seconds``: time limit of a call. ``clock``: Unix time.
    """

    max_fee_per_gas: int | None = None
    gas_limit: int = 150_000
    contract_gas_limit: int = 300_000
    reserve_settlements: int = 3
    contract_wallets: bool = True
    erc6492_factories: Iterable[str] = ()
    final_depth: int = 32
    quorum: int = 1
    quorum_above: int = 0
    poll_seconds: tuple[float, float] = (0.02, 0.5)
    rpc_seconds: float = 10.0
    clock: Callable[[], float] = time.time
