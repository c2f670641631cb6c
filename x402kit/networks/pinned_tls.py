"""TLS to a node that signs its own certificate.

Such a node's certificate names what its owner thought of when it was made, often not the address by which we come; and
a public authority's word for that address means nothing here. So only the given certificates are trusted, and of what
the node shows one thing must hold: it is a given, self-signed certificate byte for byte (then it has the key that the
owner meant, whatever the address), or it is issued by a given one and names the host. This is looked at inside the
handshake, before anything is sent: a macaroon never reaches another server.
"""

from __future__ import annotations

import ipaddress
import ssl
from os import PathLike
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ..errors import ConfigError

__all__ = ["pinned"]

_BEGIN: Final = "-----BEGIN"


def pinned(cert: str | PathLike[str]) -> ssl.SSLContext:
    """Trust in the certificates of a PEM file, or of PEM text, and in no other. Raises ``ConfigError``."""
    try:
        text = cert if isinstance(cert, str) and _BEGIN in cert else Path(cert).read_text("ascii")
        given = x509.load_pem_x509_certificates(text.encode("ascii"))
        context = ssl.create_default_context(cadata=text)
    except (OSError, ValueError, ssl.SSLError):
        raise ConfigError("the Lightning node's certificate can't be read: a PEM file, or its text") from None
    # A node's certificate may be its own root, and lack fields that only a chain needs.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.check_hostname = False  # done below, where the certificate is not a pinned one
    context.sslobject_class = _handshake(frozenset(each.public_bytes(Encoding.DER) for each in given if _is_own(each)))
    return context


def _is_own(certificate: x509.Certificate) -> bool:
    return certificate.issuer == certificate.subject


def _handshake(own: frozenset[bytes]) -> type[ssl.SSLObject]:
    class Pinned(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            shown = self.getpeercert(binary_form=True) or b""
            if shown not in own and not _names(shown, self.server_hostname or ""):
                raise ssl.SSLCertVerificationError("the certificate is not the pinned one, nor does it name the host")

    return Pinned


def _names(der: bytes, host: str) -> bool:
    """Whether a certificate names the host, letter by letter: wildcards are for public sites."""
    try:
        names = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (ValueError, x509.ExtensionNotFound):
        return False
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower() in (name.lower() for name in names.value.get_values_for_type(x509.DNSName))
    return address in names.value.get_values_for_type(x509.IPAddress)
