"""A local EVM chain with Circle's token and funded accounts: real blocks, real reverts, no network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from ..networks.assets import default_asset
from ..networks.evm import checksum
from . import fiat_token, packages
from .base import OTHER_FUNDS, PAYER_FUNDS, Chain
from .contracts import answering_code, encode
from .errors import DevnetError
from .process import Server

__all__ = ["ACCOUNTS", "EvmAccount", "EvmDevnet"]

_GAS_PRICE_ORACLE: Final = "0x420000000000000000000000000000000000000F"
_PRICE_FEED: Final = "0x71041dddad3595F9CEd3DcCFBe3D1F4b0a16Bb70"
"""Where Base has Chainlink's ETH / USD feed."""


@dataclass(frozen=True)
class EvmAccount:
    """An account of the local chain."""

    address: str
    private_key: str


# The accounts that every anvil and hardhat node starts with; their keys are public, and worth nothing anywhere.
ACCOUNTS: Final = (
    EvmAccount(
        "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266",
        "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
    ),
    EvmAccount(
        "0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
        "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
    ),
    EvmAccount(
        "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC",
        "0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a",
    ),
    EvmAccount(
        "0x90F79bf6EB2c4f870365E785982E1f101E93b906",
        "0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6",
    ),
    EvmAccount(
        "0x15d34AAf54267DB7D7c367839AAf71A00a2C6A65",
        "0x47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a",
    ),
    EvmAccount(
        "0x9965507D1a55bcC2695C58ba16FB37d819B0A4dc",
        "0x8b3a350cf5c34c9194ca85829a2df0ec3153be0318b5e2d3348e872092edffba",
    ),
)


class EvmDevnet(Chain):
    """A running chain. Use it in a ``with`` statement, or call ``stop()``; it also ends with its process.

    ``accounts[0]`` is the seller's settlement wallet (ETH, no USDC), ``accounts[1]`` a payer with 1 000 USDC, the
    others have 10 USDC each. Amounts are atomic units of ``usdc`` (6 decimals).
    """

    def __init__(self, chain_id: int = 8453) -> None:
        """Starts the chain on a free loopback port. Raises DevnetError; ToolMissing says what to install."""
        asset = default_asset(f"eip155:{chain_id}")
        if asset is None:
            raise DevnetError(f"no token is known for chain {chain_id}")
        self.chain_id, self.usdc, self.accounts = chain_id, asset.address, ACCOUNTS
        self._asset = asset
        command = (str(packages.anvil()), "--host", "127.0.0.1", "--port", "0", "--chain-id", str(chain_id))
        server = Server(command, ready="Listening on ")
        port = server.announcement.rpartition(":")[2]
        super().__init__(server, f"http://127.0.0.1:{port}")

    def _fund(self) -> None:
        self.rpc("anvil_setLoggingEnabled", False)
        fiat_token.install(self._rpc, self._asset)
        self.mint(ACCOUNTS[1].address, PAYER_FUNDS)
        for account in ACCOUNTS[2:]:
            self.mint(account.address, OTHER_FUNDS)

    def describe(self) -> dict[str, Any]:
        """What `x402kit devnet --json` prints of this chain."""
        accounts = [{"address": a.address, "private_key": a.private_key} for a in self.accounts]
        found = {"rpc_url": self.rpc_url, "chain_id": self.chain_id, "usdc": self.usdc, "accounts": accounts}
        return {"evm": found}

    # What a test does to the chain. The methods that send a transaction need the chain to mine by itself.

    def snapshot(self) -> str:
        """Remembers the whole state; the id is good for one ``revert``."""
        found: str = self.rpc("evm_snapshot")
        return found

    def revert(self, snapshot: str) -> None:
        """Goes back to a snapshot: state, blocks and clock. Raises DevnetError when it is not there."""
        if self.rpc("evm_revert", snapshot) is not True:
            raise DevnetError(f"snapshot {snapshot} is gone")

    def set_automine(self, on: bool) -> None:
        """Whether each transaction is mined at once, or waits for ``mine()``."""
        self.rpc("evm_setAutomine", on)

    def mine(self, blocks: int = 1) -> None:
        """Mines blocks now."""
        self.rpc("anvil_mine", hex(blocks))

    def set_code(self, address: str, code: str) -> None:
        """Puts runtime code, in hex, at an address."""
        self.rpc("anvil_setCode", address, code)

    def deploy(self, init_code: str) -> str:
        """Runs creation code, in hex, and returns the contract's address. Raises DevnetError."""
        return checksum(fiat_token.send(self._rpc, None, init_code)["contractAddress"])

    # The token

    def balance_of(self, address: str) -> int:
        """USDC at an address, atomic units."""
        answer: str = self.rpc("eth_call", {"to": self.usdc, "data": encode("balanceOf(address)", address)}, "latest")
        return int.from_bytes(bytes.fromhex(answer[2:]), "big")

    def mint(self, address: str, amount: int) -> None:
        """Gives an address new USDC, atomic units. Raises DevnetError."""
        self.send_as_minter("mint(address,uint256)", address, amount)

    def send_as_minter(self, signature: str, *arguments: str | int | bytes) -> None:
        """Calls the token as its owner, minter, pauser and blacklister, e.g. ``("blacklist(address)", payer)``.

        Raises ChainRefused when the token refuses.
        """
        fiat_token.send(self._rpc, self.usdc, encode(signature, *arguments))

    # Contracts that payers and sellers meet

    def deploy_erc1271_wallet(self, owner: str) -> str:
        """A wallet contract that accepts what ``owner`` signed (EIP-1271); returns its address. Raises DevnetError."""
        return self.deploy(fiat_token.wallet_init_code(owner))

    def set_l1_fee(self, wei: int) -> str:
        """Installs the OP stack's gas price oracle, with one fee for every transaction; returns its address."""
        answers = {"getL1Fee(bytes)": [wei], "getL1FeeUpperBound(uint256)": [wei]}
        self.set_code(_GAS_PRICE_ORACLE, answering_code(answers))
        return _GAS_PRICE_ORACLE

    def set_price_feed(self, answer: int, *, updated_at: int, decimals: int = 8, address: str = _PRICE_FEED) -> str:
        """Installs a Chainlink-like feed with one answer (times 10**decimals, may be negative); returns its address.

        ``updated_at`` is in Unix seconds, so that a test can show a stale price.
        """
        round_data = [1, answer, updated_at, updated_at, 1]
        self.set_code(address, answering_code({"latestRoundData()": round_data, "decimals()": [decimals]}))
        return address
