"""What the demo needs of a rail: a local chain, its two wallets, and what the chain itself says of a transfer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from ..client import Limits, Payer, Proposal
from ..client.balance import Balance
from ..devnet import EvmDevnet, SvmDevnet
from ..devnet.errors import DevnetError
from ..money import Asset
from ..networks.assets import DEFAULTS
from ..networks.evm import checksum, keccak

__all__ = ["DemoRail", "EvmDemo", "OnChain", "Transfer"]

C = TypeVar("C", EvmDevnet, SvmDevnet)


@dataclass(frozen=True, slots=True)
class Transfer:
    """A transfer as the chain has it, or the payee's own node (then in no block); ``amount`` in atomic units."""

    transaction: str
    block: int
    payer: str
    pay_to: str
    amount: int


class DemoRail(Protocol):
    """A rail with its chain; used in a ``with`` statement, whose end stops the chain."""

    @property
    def about(self) -> str:
        """One line about the chain."""
        ...

    @property
    def proves(self) -> bool:
        """Whether its payer has a wallet that proves itself, and so a balance to top up."""
        ...

    @property
    def asset(self) -> Asset: ...
    @property
    def payer(self) -> str: ...
    @property
    def seller(self) -> str: ...

    def environment(self) -> dict[str, str]:
        """The X402KIT_* variables with which the example takes payments on this rail."""
        ...

    def wallet(self, per_call: str, per_day: str, approve: Callable[[Proposal], bool], balance: Balance) -> Payer:
        """A payer that pays on this rail only."""
        ...

    def balance_of(self, address: str) -> int: ...

    def transfer(self, transaction: str) -> Transfer:
        """Look a transaction up. Raises ``DevnetError`` when it is no single transfer of the asset."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class OnChain(Generic[C]):
    """USDC on a local chain: its first account is the seller's, its second the payer's."""

    proves = True
    _evm_key: str | None = None
    _svm_key: str | None = None
    """Whichever it is, the payer's."""

    def __init__(self, chain: C, network: str) -> None:
        self._chain: C = chain
        self.asset = DEFAULTS[network]
        self.seller, self.payer = (account.address for account in chain.accounts[:2])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._chain.stop()

    def wallet(self, per_call: str, per_day: str, approve: Callable[[Proposal], bool], balance: Balance) -> Payer:
        limits = Limits(per_call=per_call, per_day=per_day, networks=[self.asset.network])
        return Payer(
            self._evm_key,
            svm_key=self._svm_key,
            limits=limits,
            approve=approve,
            balance=balance,
            allow_insecure=True,
        )

    def balance_of(self, address: str) -> int:
        return self._chain.balance_of(address)


class EvmDemo(OnChain[EvmDevnet]):
    """USDC on a local copy of Base."""

    def __init__(self) -> None:
        chain = EvmDevnet()
        super().__init__(chain, f"eip155:{chain.chain_id}")
        self._evm_key = chain.accounts[1].private_key

    @property
    def about(self) -> str:
        return f"anvil at {self._chain.rpc_url}, chain {self._chain.chain_id}, with Circle's USDC contract"

    def environment(self) -> dict[str, str]:
        return {
            "X402KIT_EVM_RPC_URL": self._chain.rpc_url,
            "X402KIT_EVM_NETWORK": self.asset.network,
            "X402KIT_EVM_PAY_TO": self.seller,
            "X402KIT_EVM_KEY": self._chain.accounts[0].private_key,
        }

    def transfer(self, transaction: str) -> Transfer:
        receipt: Any = self._chain.rpc("eth_getTransactionReceipt", transaction)
        event = "0x" + keccak(b"Transfer(address,address,uint256)").hex()
        token = self.asset.address.lower()
        found: list[Any] = receipt["logs"] if receipt and receipt["status"] == "0x1" else []
        logs = [log for log in found if log["address"] == token and log["topics"][0] == event]
        if len(logs) != 1:
            raise DevnetError(f"transaction {transaction} is no transfer of {self.asset.symbol}")
        payer, pay_to = (checksum("0x" + topic[-40:]) for topic in logs[0]["topics"][1:])
        return Transfer(transaction, int(receipt["blockNumber"], 16), payer, pay_to, int(logs[0]["data"], 16))
