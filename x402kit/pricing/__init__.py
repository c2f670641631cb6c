"""What a call costs: rules from a request to a quote, and from its use to the actual cost."""

from .charge import End, charge
from .metered import Metered
from .passes import Pass
from .price import Call, Dynamic, Fixed, Meter, Price, PriceFunction, PriceLike, Quote, price_of
from .table import Models
from .tokens import Tokens
from .units import PerImage, PerRequest, PerSecond
from .usage import Delivered, Usage, usage_of

__all__ = [
    "Call",
    "Delivered",
    "Dynamic",
    "End",
    "Fixed",
    "Meter",
    "Metered",
    "Models",
    "Pass",
    "PerImage",
    "PerRequest",
    "PerSecond",
    "Price",
    "PriceFunction",
    "PriceLike",
    "Quote",
    "Tokens",
    "Usage",
    "charge",
    "price_of",
    "usage_of",
]
