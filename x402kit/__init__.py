"""Put a price on any ASGI endpoint, and let any program pay it.

A seller starts at ``Paywall`` and ``x402kit.networks``; a payer's program at ``x402kit.client``. Errors stand in
``x402kit.errors``. Importing this package loads no chain package and touches no network.
"""

from .asgi.call import PaidCall
from .asgi.paywall import Paywall
from .money import Asset, Usd, usd
from .pricing import Call, Metered, Models, Pass, PerImage, PerRequest, PerSecond, Quote, Tokens, Usage

__all__ = [
    "Asset",
    "Call",
    "Metered",
    "Models",
    "PaidCall",
    "Pass",
    "Paywall",
    "PerImage",
    "PerRequest",
    "PerSecond",
    "Quote",
    "Tokens",
    "Usage",
    "Usd",
    "usd",
]
