"""Whose money it is: the wallets' keys and the journal, shared by the commands that pay."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any, Final

from ..client import Limits
from ..errors import ConfigError

__all__ = ["add_keys", "add_lightning", "dollars", "journal_path", "limits_of", "read_wallets"]

_AMOUNT: Final = re.compile(r"\$?\d+\.\d+\Z|\$\d+\Z", re.ASCII)


def add_keys(parser: argparse.ArgumentParser, networks: str = "base, solana") -> None:
    """Keys, network, journal, and the cap that the journal keeps. ``networks``: those with a name of their own."""
    parser.add_argument("--max-per-day", type=dollars, metavar="USD", help="with what the journal holds of today")
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="an EVM private key, 64 hex digits")
    parser.add_argument("--svm-keypair", type=Path, metavar="FILE", help="a Solana keypair, the usual JSON file")
    parser.add_argument("--network", metavar="NAME", help=f"{networks}, or CAIP-2: nothing is paid elsewhere")
    parser.add_argument("--journal", type=Path, metavar="FILE", help="~/.local/state/x402kit/journal.db if not given")


def add_lightning(parser: argparse.ArgumentParser) -> None:
    """A Lightning node to pay from."""
    node = "lnd+https://host:8080, and cln+, phoenixd+, lnbits+; nostr+walletconnect:… comes from the environment"
    parser.add_argument("--lightning", metavar="URL", help=f"a Lightning node that pays: {node}")
    parser.add_argument("--lightning-key", type=Path, metavar="FILE", help="its macaroon, rune, password or key")
    parser.add_argument("--lightning-cert", type=Path, metavar="FILE", help="its own certificate")
    parser.add_argument("--btc-usd", metavar="PRICE", help="what a bitcoin counts against the limits, such as 97000")


def dollars(text: str) -> str:
    """A bare number could be dollars or atomic units (L06): a dollar sign or a decimal point is asked for."""
    if not _AMOUNT.match(text):
        whole = f"{text}.00 or '${text}'" if text.isascii() and text.isdigit() else "0.05 or '$0.05'"
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of dollars: write {whole} (quoted from the shell)")
    return text if text.startswith("$") else f"${text}"


def read_wallets(arguments: argparse.Namespace) -> dict[str, Any]:
    """``Payer``'s arguments about wallets: from what is given, or else from the environment.

    Raises ``ConfigError``.
    """
    given: dict[str, Any] = {}
    if arguments.key_file is not None:
        given["evm_key"] = _read_key(arguments.key_file)
    if arguments.svm_keypair is not None:
        given["svm_keypair"] = arguments.svm_keypair
    given |= _given_node(arguments)
    made = given or _from_environment(arguments)
    if not made:
        node = "; or a Lightning node: X402KIT_LIGHTNING_URL, or --lightning" if hasattr(arguments, "lightning") else ""
        keys = "set X402KIT_EVM_KEY or X402KIT_SVM_KEY, or give --key-file or --svm-keypair"
        raise ConfigError(f"no wallet: {keys}{node}")
    node = _variable("svm_rpc_url")
    return {**made, "svm_rpc": node} if node else made


def _from_environment(arguments: argparse.Namespace) -> dict[str, Any]:
    made: dict[str, Any] = {name: value for name in ("evm_key", "svm_key") if (value := _variable(name))}
    url, price = _variable("lightning_url"), _price(arguments)
    # A seller's node may be set there too, which has no use here without a price.
    if url and (price or not made) and hasattr(arguments, "lightning"):
        made |= _node(url, _variable("lightning_key"), _variable("lightning_cert"), price)
    return made


def _given_node(arguments: argparse.Namespace) -> dict[str, Any]:
    url: str | None = getattr(arguments, "lightning", None)
    if url is None:
        return {}
    key, cert = arguments.lightning_key, arguments.lightning_cert
    if key is not None and not key.is_file():  # and its name is not shown: it may be the secret
        raise ConfigError(
            "--lightning-key is the path of a file, and there is none; X402KIT_LIGHTNING_KEY takes a value"
        )
    secret = _variable("lightning_key") if key is None else str(key.absolute())
    return _node(url, secret, "" if cert is None else str(cert), _price(arguments))


def _node(url: str, secret: str, cert: str, price: str) -> dict[str, Any]:
    from ..networks.lightning_nodes import node_of

    if not price:
        raise ConfigError("limits are in dollars: --btc-usd, or X402KIT_LIGHTNING_BTC_USD, says what a bitcoin counts")
    return {"lightning": node_of(url, secret, cert), "btc_usd": price}


def _price(arguments: argparse.Namespace) -> str:
    return getattr(arguments, "btc_usd", None) or _variable("lightning_btc_usd")


def _variable(name: str) -> str:
    return os.environ.get(f"X402KIT_{name.upper()}", "").strip()


def limits_of(arguments: argparse.Namespace, **limits: Any) -> Limits:
    """The limits that the arguments set. Raises ``ConfigError``."""
    networks = None if arguments.network is None else [arguments.network]
    return Limits(per_day=arguments.max_per_day, networks=networks, **limits)


def _read_key(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as e:
        raise ConfigError(f"the key file {path} can't be read: {type(e).__name__}") from None


def journal_path(given: Path | None) -> Path:
    """Where what was signed is written down."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return given or Path(state).expanduser() / "x402kit" / "journal.db"
