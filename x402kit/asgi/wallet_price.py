"""What a top-up may be, and its price: the amount that is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

from ..errors import BadRequest, ConfigError
from ..money import Usd, parse_units, usd
from ..pricing import Call, Quote
from ..protocols.encoding import parse_object

__all__ = ["AmountOutOfRange", "TopUp"]

_DECIMALS = 6


class AmountOutOfRange(BadRequest):
    """``detail`` says the bounds, which are no secret."""

    hint = "The amount is outside of what this wallet service takes. Nothing was settled."

    def __init__(self, detail: str) -> None:
        super().__init__("amount_out_of_range", detail=detail)


@dataclass(frozen=True, slots=True)
class TopUp:
    """``{"amount_usdc": "1.00"}`` is credited: decimal text, exact. With ``any_amount`` the payment brings what it
    brings, and the body, which may be missing, only says what is offered. Raises ``ConfigError``.
    """

    minimum: Usd
    maximum: Usd
    any_amount: bool = False
    needs_body: bool = field(default=True, init=False)
    metered: bool = field(default=False, init=False)

    @classmethod
    def of(cls, minimum: str, maximum: str, *, any_amount: bool = False) -> TopUp:
        """From prices such as ``"$1"``."""
        made = cls(usd(minimum), usd(maximum), any_amount)
        exact = all(bound.value == bound.value.quantize(Decimal("1e-6")) for bound in (made.minimum, made.maximum))
        if not exact or not Decimal(0) < made.minimum.value <= made.maximum.value:
            raise ConfigError("a top-up's minimum is above zero and not above its maximum; six decimals at the most")
        return made

    def amount(self, body: bytes) -> Usd:
        """The amount that a body asks for. Raises ``BadRequest``."""
        wanted = self._asked(body)
        if not self.minimum <= wanted <= self.maximum:
            raise AmountOutOfRange(f"a top-up is from {self.minimum} to {self.maximum}")
        return wanted

    def _asked(self, body: bytes) -> Usd:
        """The same, whatever is taken now."""
        if self.any_amount and not body.strip():
            return self.minimum
        try:
            text = parse_object(body, floats=True).get("amount_usdc")
            if self.any_amount and text is None:
                return self.minimum
            units = parse_units(text, _DECIMALS)
        except ValueError as e:
            raise BadRequest("invalid_amount", detail='the body is {"amount_usdc": "1.00"}') from e
        return Usd(Decimal(units).scaleb(-_DECIMALS))

    def canonical(self, body: bytes) -> bytes:
        """What of a body binds the payment: the amount, however it is written, and though it is taken no more (I7)."""
        return self.words(self._asked(body))

    def words(self, amount: Usd) -> bytes:
        """An amount, spelled in one way; nothing where the payment says it."""
        return b"top-up" if self.any_amount else f"top-up {amount.value.normalize():f}".encode()

    def at_least(self, units: int, decimals: int) -> Usd:
        """What brings so many atomic units to a balance, within what may be topped up at once, as a body can ask for
        it.
        """
        wanted = Usd(Decimal(Usd(Decimal(units).scaleb(-decimals)).atomic(_DECIMALS)).scaleb(-_DECIMALS))
        return min(max(wanted, self.minimum), self.maximum)

    async def quote(self, call: Call) -> Quote:
        return Quote(self.amount(call.body), "Top-up of the prepaid balance")
