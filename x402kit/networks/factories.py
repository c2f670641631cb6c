"""Rails as a seller writes them: ``Base(pay_to=…, key=…, rpc=…)``. Making one does no I/O, loads no chain package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..errors import ConfigError
from .evm_chain import EvmRail
from .evm_options import EvmOptions
from .evm_wallet import Wallet

if TYPE_CHECKING:
    from ..money import Asset
    from .evm_wallet import Signer
    from .facilitator import Headers
    from .gas import GasPolicy
    from .port import Rail
    from .rpc import Endpoint

__all__ = ["Base", "BaseSepolia", "Evm"]

_DEFAULTS: Final = EvmOptions()


def Evm(  # noqa: N802  # reads as what it makes
    network: str,
    *,
    pay_to: str,
    key: str | bytes | None = None,
    signer: Signer | None = None,
    facilitator: str | None = None,
    facilitator_headers: Headers | None = None,
    rpc: Endpoint | None = None,
    confirmations: int = 0,
    gas: GasPolicy | None = None,
    asset: Asset | None = None,
    options: EvmOptions = _DEFAULTS,
) -> Rail:
    """A rail on an EVM chain (CAIP-2 ``eip155:…``), paid in ``asset``, by default the chain's USDC.

    Exactly one of ``key`` (the settlement wallet's private key), ``signer`` (an object that signs transactions) and
    ``facilitator`` (a URL). ``rpc``: a URL, several, or an object with ``make_request``; with a facilitator it is
    optional and lets us look at the chain ourselves. ``gas`` adds the settlement's cost to every price. Raises
    ``ConfigError``.
    """
    if sum(given is not None for given in (key, signer, facilitator)) != 1:
        raise ConfigError("give exactly one of key, signer, facilitator")
    wallet = None if facilitator is not None else Wallet(key, signer)
    rail = EvmRail(
        network,
        pay_to=pay_to,
        wallet=wallet,
        rpc=rpc,
        confirmations=confirmations,
        gas=gas,
        asset=asset,
        options=options,
    )
    if facilitator is None:
        return rail
    return _facilitated(rail, facilitator, facilitator_headers)


def _facilitated(rail: EvmRail, url: str, headers: Headers | None) -> Rail:
    from .facilitator import FacilitatorRail

    return FacilitatorRail(rail, url, headers=headers)


def Base(  # noqa: N802
    *,
    pay_to: str,
    key: str | bytes | None = None,
    signer: Signer | None = None,
    facilitator: str | None = None,
    facilitator_headers: Headers | None = None,
    rpc: Endpoint | None = None,
    confirmations: int = 0,
    gas: GasPolicy | None = None,
    asset: Asset | None = None,
    network: str = "eip155:8453",
    options: EvmOptions = _DEFAULTS,
) -> Rail:
    """USDC on Base. The arguments are ``Evm``'s. Raises ``ConfigError``."""
    return Evm(
        network,
        pay_to=pay_to,
        key=key,
        signer=signer,
        facilitator=facilitator,
        facilitator_headers=facilitator_headers,
        rpc=rpc,
        confirmations=confirmations,
        gas=gas,
        asset=asset,
        options=options,
    )


def BaseSepolia(  # noqa: N802
    *,
    pay_to: str,
    key: str | bytes | None = None,
    signer: Signer | None = None,
    facilitator: str | None = None,
    facilitator_headers: Headers | None = None,
    rpc: Endpoint | None = None,
    confirmations: int = 0,
    gas: GasPolicy | None = None,
    asset: Asset | None = None,
    network: str = "eip155:84532",
    options: EvmOptions = _DEFAULTS,
) -> Rail:
    """USDC on Base's test network. The arguments are ``Evm``'s. Raises ``ConfigError``."""
    return Base(
        pay_to=pay_to,
        key=key,
        signer=signer,
        facilitator=facilitator,
        facilitator_headers=facilitator_headers,
        rpc=rpc,
        confirmations=confirmations,
        gas=gas,
        asset=asset,
        network=network,
        options=options,
    )
