"""A Lightning node from a URL, for settings and the command line.

lnd+https://host:8080       secret: macaroon (hex, or LND's file), cert: the node's tls.cert
cln+https://host:3010       secret: rune, cert: the node's ca.pem
phoenixd+http://host:9740   secret: password
lnbits+https://host         secret: a wallet's key
nostr+walletconnect://…     is itself the secret; or secret: that URI
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from ..errors import ConfigError
from .lightning_port import InvoiceNode, PayingNode

__all__ = ["LightningNode", "node_of"]

SECRET_BYTES_MAX: Final = 64 * 1024


@runtime_checkable
class LightningNode(InvoiceNode, PayingNode, Protocol):
    """Every adapter here both makes invoices and pays them, as far as its key allows."""


def node_of(url: str, secret: str = "", cert: str = "") -> LightningNode:
    """The adapter for such a URL; no traffic. ``secret`` is a value or the path of a file, ``cert`` likewise.

    Raises ``ConfigError``, which never shows the secret; ``MissingExtra`` for Nostr Wallet Connect without nostr-sdk.
    """
    if url.startswith("nostr+walletconnect:"):
        from .nwc import NostrWalletConnect

        return NostrWalletConnect(_text(secret) if secret else url)
    product, plus, address = url.partition("+")
    if not plus or product not in ("lnd", "cln", "phoenixd", "lnbits"):
        raise ConfigError(
            "a Lightning node's URL is lnd+…, cln+…, phoenixd+…, lnbits+https://… or nostr+walletconnect://…"
        )
    if not secret:
        raise ConfigError(f"the {product} node needs its secret: a value, or the path of a file")
    return _rest(product, address, secret, cert)


def _rest(product: str, address: str, secret: str, cert: str) -> LightningNode:
    if product == "lnd":
        from .lnd import Lnd

        return Lnd(address, Path(secret).expanduser() if _is_path(secret) else secret, cert=cert or None)
    if product == "cln":
        from .cln import CoreLightning

        return CoreLightning(address, _text(secret), cert=cert)
    if product == "phoenixd":
        from .phoenixd import Phoenixd

        return Phoenixd(address, _text(secret), cert=cert)
    from .lnbits import LNbits

    return LNbits(address, _text(secret), cert=cert)


def _file(secret: str) -> bytes | None:
    """What stands in the file of that name; ``None`` when there is none, and this is the secret itself."""
    is_path = _is_path(secret)
    try:
        path = Path(secret).expanduser()
        if not is_path and not path.is_file():
            return None
        with path.open("rb") as file:
            return file.read(SECRET_BYTES_MAX)
    except (OSError, RuntimeError, ValueError):
        if is_path:
            raise ConfigError("the file of the Lightning node's secret can't be read") from None
        return None


def _is_path(secret: str) -> bool:
    """No key begins like that."""
    return secret.startswith(("/", "./", "../", "~/"))


def _text(secret: str) -> str:
    found = _file(secret)
    if found is None:
        return secret
    try:
        return found.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise ConfigError("the file of the Lightning node's secret is no text") from None
