"""What one L402 token buys, where it is more than one call."""

from __future__ import annotations

from typing import Final, NamedTuple

from ..errors import ConfigError

__all__ = ["Pass"]

_CALLS_MAX: Final = 1_000_000
_SECONDS_MAX: Final = 366 * 86_400


class _Pass(NamedTuple):
    calls: int = 1
    seconds: int = 0


class Pass(_Pass):
    """An L402 token for so many ``calls``, or for all calls within so many ``seconds``. Raises ``ConfigError``.

    With ``calls`` the invoice is so many times the price; what of it is not spent stays with the token. Each call costs
    what it costs, at the rate of the invoice: at a fixed price it is good for so many calls. With ``seconds`` it is the
    price, once, and the time begins with the invoice; where the price depends on the request the token is good for
    requests of that price. A job's end finds no hold then: ``finish`` raises ``HoldEnded``.
    """

    __slots__ = ()

    def __new__(cls, calls: int = 1, seconds: int = 0) -> Pass:
        if not (1 <= calls <= _CALLS_MAX and 0 <= seconds <= _SECONDS_MAX) or (calls > 1) is (seconds > 0):
            raise ConfigError("an L402 token is good for several calls, or for a time")
        return super().__new__(cls, calls, seconds)
