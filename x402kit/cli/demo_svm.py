"""The demo's Solana: USDC on a local copy of mainnet."""

from __future__ import annotations

from typing import Any

from ..devnet import SvmDevnet
from ..devnet.errors import DevnetError
from .demo_rails import OnChain, Transfer

__all__ = ["SvmDemo"]


class SvmDemo(OnChain[SvmDevnet]):
    """USDC on a local copy of Solana."""

    def __init__(self) -> None:
        chain = SvmDevnet()
        super().__init__(chain, chain.network)
        self._svm_key = chain.accounts[1].secret_key

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
