"""A seller's set-up from the environment: the ``X402KIT_*`` variables, read once and checked as a whole.

| variable | what | without it |
| --- | --- | --- |
| X402KIT_ENV | ``devnet`` (a chain on this machine), ``testnet`` or ``mainnet`` | ``testnet`` (L07) |
| X402KIT_ORIGIN | the public origin, ``https://api.example.com``; payments are bound to it | required on mainnet |
| X402KIT_LEDGER | a file's path, or ``postgresql://…`` | ``payments.db`` |
| X402KIT_SECRET | signs quotes, tokens and links, 16 characters or more | the ledger makes its own |
| X402KIT_SECRET_BEFORE | the one before, good as long as it stands here: for a rotation | |
| X402KIT_SERVICE | the name that stands in wallet proofs | ``x402kit``; required on mainnet |
| X402KIT_PAYMENT_HEADER | the field of ``Payment``; ``Payment-Authorization`` is beside API keys | ``Authorization`` |
| X402KIT_EVM_RPC_URL | a node's address | the EVM rail is off, if none of the four is set |
| X402KIT_EVM_PAY_TO | who is paid, 0x… | |
| X402KIT_EVM_KEY | the settlement wallet's private key; it pays the gas | |
| X402KIT_EVM_NETWORK | CAIP-2 | Base; on testnet Base Sepolia |
| X402KIT_SVM_RPC_URL | a Solana node's address | the Solana rail is off, if none of the four is set |
| X402KIT_SVM_PAY_TO | who is paid, base58 | |
| X402KIT_SVM_KEY | the settlement wallet's key, base58 or a JSON array; it pays the fees | |
| X402KIT_SVM_NETWORK | CAIP-2 | Solana; on testnet Solana's devnet |
| X402KIT_LIGHTNING_URL | the seller's node, ``lnd+https://…`` (networks/lightning_nodes.py) | Lightning is off |
| X402KIT_LIGHTNING_KEY | its macaroon, rune, password or key: the value, or the path of a file | |
| X402KIT_LIGHTNING_CERT | the path of the node's own certificate (PEM) | the system's authorities |
| X402KIT_LIGHTNING_BTC_USD | dollars for a bitcoin, ``97000``, as the operator states them | the feed below |
| X402KIT_LIGHTNING_FEED | a Chainlink aggregator of BTC / USD, on the chain of X402KIT_EVM_RPC_URL | |
| X402KIT_LIGHTNING_NETWORK | CAIP-2 | Bitcoin; on testnet its testnet, on devnet regtest |

Every fault is a ``ConfigError`` that names the variable and never shows its value.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from .asgi.paywall import Paywall
from .errors import ConfigError, WrongChain
from .networks import Evm
from .networks.assets import TESTNETS
from .networks.evm_wallet import Wallet
from .networks.lightning_port import BITCOIN, REGTEST, TESTNET
from .networks.port import Rail
from .paywall.binding import SECRET_MIN

if TYPE_CHECKING:
    from .networks.lightning import Lightning

__all__ = ["EvmSettings", "LightningSettings", "Settings", "SvmSettings"]

Environment = Literal["devnet", "testnet", "mainnet"]
_PREFIX: Final = "X402KIT_"
_WORDS: Final = {
    "missing": "it is missing",
    "extra_forbidden": "there is no such variable",
    "string_pattern_mismatch": "it is not written as docs/settings.md has it",
}
"""What to do about the commonest faults: pydantic would show its pattern."""
_SOLANA: Final = "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"
_SOLANA_DEVNET: Final = "solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1"
DEFAULT_SERVICE: Final = "x402kit"
_DEFAULT_NETWORKS: Final = {
    "evm": {"devnet": "eip155:8453", "testnet": "eip155:84532", "mainnet": "eip155:8453"},
    "lightning": {"devnet": REGTEST, "testnet": TESTNET, "mainnet": BITCOIN},
    "svm": {"devnet": _SOLANA, "testnet": _SOLANA_DEVNET, "mainnet": _SOLANA},
}
# Values must not come back in an error's text: some are keys (I11).
_FROZEN: Final = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class EvmSettings(BaseModel):
    """The EVM rail's variables."""

    model_config = _FROZEN

    rpc_url: str = Field(pattern=r"^https?://\S+$", repr=False)  # it may hold a token (I11)
    pay_to: str = Field(pattern=r"^0x[0-9a-fA-F]{40}$")
    key: SecretStr
    network: str = Field(pattern=r"^eip155:[1-9][0-9]{0,18}$")

    @field_validator("key")
    @classmethod
    def _is_key(cls, key: SecretStr) -> SecretStr:
        return _usable(key, Wallet)

    def rail(self) -> Rail:
        """The rail that these make. Raises ``ConfigError``."""
        return Evm(self.network, pay_to=self.pay_to, key=self.key.get_secret_value(), rpc=self.rpc_url)


class SvmSettings(BaseModel):
    """The Solana rail's variables."""

    model_config = _FROZEN

    rpc_url: str = Field(pattern=r"^https?://\S+$", repr=False)  # it may hold a token (I11)
    pay_to: str = Field(pattern=r"^[1-9A-HJ-NP-Za-km-z]{32,44}$")
    key: SecretStr
    network: str = Field(pattern=r"^solana:[1-9A-HJ-NP-Za-km-z]{32}$")

    @field_validator("key")
    @classmethod
    def _is_key(cls, key: SecretStr) -> SecretStr:
        from .networks.svm_wallet import SvmWallet  # as below

        return _usable(key, SvmWallet)

    def rail(self) -> Rail:
        """The rail that these make. Raises ``ConfigError``."""
        from .networks import Solana  # not before it is needed: a Base-only process does not pay for it

        return Solana(network=self.network, pay_to=self.pay_to, key=self.key.get_secret_value(), rpc=self.rpc_url)


class LightningSettings(BaseModel):
    """The Lightning node's variables. It counts in bitcoin: a price is stated, or read from a feed."""

    model_config = _FROZEN

    url: str = Field(pattern=r"^(lnd|cln|phoenixd|lnbits)\+https?://\S+$|^nostr\+walletconnect:\S+$", repr=False)
    key: SecretStr | None = None
    cert: str = ""
    btc_usd: str = Field("", pattern=r"^([1-9][0-9]{0,11}(\.[0-9]{1,8})?)?$")
    feed: str = Field("", pattern=r"^(0x[0-9a-fA-F]{40})?$")
    network: str = Field(pattern=r"^bip122:[0-9a-f]{32}$")

    def rail(self, rpc_url: str) -> Lightning:
        """Invoices of that node. Raises ``ConfigError``."""
        from .networks import ChainlinkFeed, FixedPrice
        from .networks.lightning import Lightning
        from .networks.lightning_nodes import node_of

        node = node_of(self.url, self.key.get_secret_value() if self.key else "", self.cert)
        if self.btc_usd:
            return Lightning(node, price=FixedPrice(self.btc_usd), network=self.network)
        return Lightning(node, price=ChainlinkFeed(self.feed), rpc=rpc_url, network=self.network)


class Settings(BaseModel):
    """All variables. ``from_env()`` reads them, ``paywall()`` makes what a seller needs of them."""

    model_config = _FROZEN

    env: Environment = "testnet"
    origin: str = ""
    ledger: str = Field("payments.db", min_length=1, repr=False)  # it may hold a password (I11)
    secret: SecretStr | None = None
    secret_before: SecretStr | None = None
    service: str = Field(DEFAULT_SERVICE, min_length=1, max_length=64)
    payment_header: Literal["Authorization", "Payment-Authorization"] = "Authorization"
    evm: EvmSettings | None = None
    svm: SvmSettings | None = None
    lightning: LightningSettings | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read ``os.environ`` or another mapping; an empty value counts as absent. Raises ``ConfigError``."""
        found = {
            name.removeprefix(_PREFIX).lower(): value.strip()
            for name, value in (os.environ if environ is None else environ).items()
            if name.startswith(_PREFIX) and value.strip()
        }
        values: dict[str, Any] = {name: found[name] for name in cls.model_fields if name in found}
        for kind, networks in _DEFAULT_NETWORKS.items():
            own = {name.removeprefix(f"{kind}_"): value for name, value in found.items() if name.startswith(f"{kind}_")}
            if own:
                # Where X402KIT_ENV is none of these, it alone is told of.
                values[kind] = {"network": networks.get(found.get("env", ""), networks["testnet"]), **own}
        try:
            return cls(**values)
        except ValidationError as e:
            raise ConfigError("; ".join(_fault(error) for error in e.errors())) from None

    @field_validator("secret", "secret_before")
    @classmethod
    def _is_long(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and len(secret.get_secret_value().encode()) < SECRET_MIN:
            raise ValueError(f"it has {SECRET_MIN} characters or more")
        return secret

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.ledger.partition("://")[1] and self.ledger.partition("://")[0] not in ("postgres", "postgresql"):
            raise ValueError("X402KIT_LEDGER: a file's path, or postgresql://…")
        if self.env == "mainnet" and urlsplit(self.origin).scheme != "https":
            raise ValueError("X402KIT_ORIGIN: mainnet needs the public origin, https://…")
        if self.env == "mainnet" and self.service == DEFAULT_SERVICE:
            # A proof of Katana's kind names who it is for by this word alone (F02): two sellers must not share it.
            raise ValueError("X402KIT_SERVICE: mainnet needs a name of your own")
        if self.secret_before is not None and self.secret is None:
            raise ValueError("X402KIT_SECRET_BEFORE: is for who has a X402KIT_SECRET")
        if self.evm is not None:
            self._check_network("EVM", self.evm.network, self.evm.rpc_url)
        if self.svm is not None:
            self._check_network("SVM", self.svm.network, self.svm.rpc_url)
        if self.lightning is not None:
            self._check_lightning(self.lightning)
        return self

    def _check_lightning(self, given: LightningSettings) -> None:
        if not given.btc_usd and not (given.feed and self.evm is not None):
            feed = "X402KIT_LIGHTNING_FEED and, to read it, the chain of X402KIT_EVM_…"
            raise ValueError(f"X402KIT_LIGHTNING_BTC_USD: Lightning needs the price of a bitcoin, this or {feed}")
        if self.env == "devnet":
            if given.network != REGTEST or not _is_loopback(given.url):
                raise ValueError("X402KIT_LIGHTNING_URL: X402KIT_ENV=devnet takes a regtest node on this machine only")
        elif (given.network != BITCOIN) is not (self.env == "testnet"):
            raise ValueError(f"X402KIT_LIGHTNING_NETWORK: {given.network} does not belong to X402KIT_ENV={self.env}")

    def _check_network(self, kind: str, network: str, rpc_url: str) -> None:
        """Test money and real money are never mixed up (L07)."""
        if self.env == "devnet":
            if not _is_loopback(rpc_url):
                raise ValueError(f"X402KIT_{kind}_RPC_URL: X402KIT_ENV=devnet takes a chain on this machine only")
        elif (network in TESTNETS) is not (self.env == "testnet"):
            raise ValueError(f"X402KIT_{kind}_NETWORK: {network} does not belong to X402KIT_ENV={self.env}")

    def rails(self) -> list[Rail | Lightning]:
        """The rails whose variables are set. Raises ``ConfigError`` when there is none."""
        found: list[Rail | Lightning] = [each.rail() for each in (self.evm, self.svm) if each is not None]
        if self.lightning is not None:
            found.append(self.lightning.rail(self.evm.rpc_url if self.evm is not None else ""))
        if not found:
            raise ConfigError(
                "no rail is set up: X402KIT_EVM_RPC_URL, X402KIT_EVM_PAY_TO and X402KIT_EVM_KEY, or X402KIT_SVM_…, or "
                "X402KIT_LIGHTNING_…"
            )
        return found

    def paywall(self) -> Paywall:
        """The paywall that these settings describe. Raises ``ConfigError``."""
        given = (self.secret, self.secret_before)
        secrets = [each.get_secret_value().encode() for each in given if each is not None]
        made = _SetUp(
            self.rails(),
            self.ledger,
            origin=self.origin,
            service=self.service,
            secret=secrets,
            payment_header=self.payment_header,
        )
        made.env = self.env
        return made


class _SetUp(Paywall):
    """Knows where its networks came from."""

    env: str = ""

    async def start(self) -> None:
        try:
            await super().start()
        except WrongChain as e:
            where = f"X402KIT_ENV={self.env} (testnet where it is not set) or an X402KIT_…_NETWORK"
            raise WrongChain(f"{e}; what the rail is on comes from {where}") from e


def _usable(key: SecretStr, wallet: Callable[[str], object]) -> SecretStr:
    """A key that a wallet can be made of. Raises ``ValueError``, never showing it (I11)."""
    try:
        wallet(key.get_secret_value())
    except ConfigError as e:
        raise ValueError(str(e)) from None
    return key


def _fault(error: Any) -> str:
    """One fault of pydantic's, with the variable's name and without its value."""
    message: str = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return message
    return f"{_PREFIX}{'_'.join(str(part) for part in error['loc']).upper()}: {_WORDS.get(error['type'], message)}"


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
