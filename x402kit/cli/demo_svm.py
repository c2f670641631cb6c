"""The demo's Solana: USDC on a local copy of mainnet."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from ..client import Limits, Payer, Proposal
from ..client.balance import Balance
from ..devnet import SvmDevnet
from ..devnet.errors import DevnetError
from ..networks.assets import DEFAULTS
from .demo_rails import Transfer

__all__ = ["SvmDemo"]


class SvmDemo:
    """USDC on a local copy of Solana."""

    def __init__(self) -> None:
        self._chain = SvmDevnet()
        self.asset = DEFAULTS[self._chain.network]
        self.seller, self.payer = (account.address for account in self._chain.accounts[:2])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._chain.stop()

    @property
    def about(self) -> str:
        return f"Surfpool at {self._chain.rpc_url}, a local Solana, with USDC at its mainnet mint"

    def environment(self) -> dict[str, str]:
        return {
            "X402KIT_SVM_RPC_URL": self._chain.rpc_url,
            "X402KIT_SVM_NETWORK": self.asset.network,
            "X402KIT_SVM_PAY_TO": self.seller,
            "X402KIT_SVM_KEY": self._chain.accounts[0].secret_key,
        }

    def wallet(self, per_call: str, per_day: str, approve: Callable[[Proposal], bool], balance: Balance) -> Payer:
        limits = Limits(per_call=per_call, per_day=per_day, networks=[self.asset.network])
        key = self._chain.accounts[1].secret_key
        return Payer(svm_key=key, limits=limits, approve=approve, balance=balance, allow_insecure=True)

    def balance_of(self, address: str) -> int:
        return self._chain.balance_of(address)

    def transfer(self, transaction: str) -> Transfer:
        options = {"encoding": "jsonParsed", "commitment": "confirmed", "maxSupportedTransactionVersion": 0}
        found: Any = self._chain.rpc("getTransaction", transaction, options)
        steps: list[Any] = found["transaction"]["message"]["instructions"] if found and not found["meta"]["err"] else []
        made = [step["parsed"]["info"] for step in steps if _is_transfer(step)]
        if len(made) != 1 or made[0]["mint"] != self.asset.address:
            raise DevnetError(f"transaction {transaction} is no transfer of {self.asset.symbol}")
        (info,) = made
        owner = self._chain.rpc("getAccountInfo", info["destination"], {"encoding": "jsonParsed"})
        pay_to = str(owner["value"]["data"]["parsed"]["info"]["owner"])
        return Transfer(transaction, found["slot"], info["authority"], pay_to, int(info["tokenAmount"]["amount"]))


def _is_transfer(step: Any) -> bool:
    parsed: Any = step.get("parsed")  # a memo's is plain text
    return not isinstance(parsed, str) and bool(parsed) and parsed["type"] == "transferChecked"
