"""Solana rails as a seller writes them: ``Solana(pay_to=…, key=…, rpc=…)``. No I/O; loads no chain package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..errors import ConfigError
from .svm_chain import SvmRail
from .svm_options import SvmOptions
from .svm_wallet import SvmWallet

if TYPE_CHECKING:
    from ..money import Asset
    from .facilitator import Headers
    from .port import Rail
    from .rpc import Endpoint
    from .svm_fees import FeePolicy
    from .svm_wallet import SvmKey, SvmSigner

__all__ = ["Solana", "SolanaDevnet"]

_DEFAULTS: Final = SvmOptions()


def Solana(  # noqa: N802  # reads as what it makes
    *,
    pay_to: str,
    key: SvmKey | None = None,
    signer: SvmSigner | None = None,
    facilitator: str | None = None,
    facilitator_headers: Headers | None = None,
    fee_payer: str = "",
    rpc: Endpoint | None = None,
    confirmations: int = 0,
    fees: FeePolicy | None = None,
    asset: Asset | None = None,
    network: str = "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp",
    options: SvmOptions = _DEFAULTS,
) -> Rail:
    """USDC on Solana, or another ``asset``.

    Exactly one of ``key`` (the settlement wallet's: base58 of 64 bytes, the bytes, a JSON array or a file of one; see
    ``SvmKey``), ``signer`` (an object that signs messages, such as a solders ``Keypair``) and ``facilitator`` (a URL;
    its own word says who pays the fees, unless ``fee_payer`` does). ``confirmations`` 0 counts a payment when it is
    confirmed, any more when it is finalized. ``fees`` adds the settlement's cost to every price. Raises
    ``ConfigError``.
    """
    if sum(given is not None for given in (key, signer, facilitator)) != 1:
        raise ConfigError("give exactly one of key, signer, facilitator")
    rail = SvmRail(
        network,
        pay_to=pay_to,
        wallet=None if facilitator is not None else SvmWallet(key, signer),
        rpc=rpc,
        confirmations=confirmations,
        fees=fees,
        asset=asset,
        fee_payer=fee_payer,
        options=options,
    )
    if facilitator is None:
        return rail
    from .facilitator import FacilitatorRail

    return FacilitatorRail(rail, facilitator, headers=facilitator_headers)


def SolanaDevnet(  # noqa: N802
    *,
    pay_to: str,
    key: SvmKey | None = None,
    signer: SvmSigner | None = None,
    facilitator: str | None = None,
    facilitator_headers: Headers | None = None,
    fee_payer: str = "",
    rpc: Endpoint | None = None,
    confirmations: int = 0,
    fees: FeePolicy | None = None,
    asset: Asset | None = None,
    network: str = "solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1",
    options: SvmOptions = _DEFAULTS,
) -> Rail:
    """USDC on Solana's public devnet. The arguments are ``Solana``'s. Raises ``ConfigError``."""
    return Solana(
        pay_to=pay_to,
        key=key,
        signer=signer,
        facilitator=facilitator,
        facilitator_headers=facilitator_headers,
        fee_payer=fee_payer,
        rpc=rpc,
        confirmations=confirmations,
        fees=fees,
        asset=asset,
        network=network,
        options=options,
    )
