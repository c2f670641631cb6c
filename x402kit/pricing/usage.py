"""What a call used: read from the ``usage`` object of an answer, or made by the app. No I/O.

Read are OpenAI's chat completions, completions, embeddings and responses, and Anthropic's messages. OpenAI counts
cached tokens as part of the prompt, Anthropic beside it; here ``input`` is what was not cached, for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, cast

__all__ = ["COUNT_MAX", "Delivered", "Missing", "Usage", "usage_of"]

COUNT_MAX: Final = 2**53
"""Counts above are absurd: JSON readers elsewhere no longer agree about them."""

Missing = Literal["estimate", "ceiling", "nothing"]
"""What a complete answer costs that states no usage."""

_NOTHING: Final[Mapping[str, int | Decimal]] = MappingProxyType({})


class Delivered(NamedTuple):
    """What went out of an answer, for the estimate of one that states no usage (H03).

    ``bytes``: of a stream the text in its deltas, else the body. ``events``: of a stream those that carry text.
    ``prompt``: what was said of the prompt before the answer began (Anthropic's ``message_start``).
    """

    bytes: int = 0
    events: int = 0
    prompt: Usage | None = None


class Usage(NamedTuple):
    """What one call used. Counts are ``int`` from 0 to ``COUNT_MAX``; with any other the whole usage is ``absurd``.

    ``input`` tokens were not cached, ``cached`` were read from a cache, ``cache_write`` written to one; ``reasoning``
    is part of ``output``. ``images`` and ``milliseconds`` are None where they are not stated. ``extra`` has the app's
    own units, for a cost function of its own.
    """

    input: int = 0
    output: int = 0
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0
    images: int | None = None
    milliseconds: int | None = None
    extra: Mapping[str, int | Decimal] = _NOTHING

    @property
    def prompt(self) -> int:
        """All input tokens, cached or not."""
        return self.input + self.cached + self.cache_write

    @property
    def has_tokens(self) -> bool:
        """Whether it states tokens: some, or an explicit zero and nothing else (H04)."""
        return any(self[:5]) or (self.images is None and self.milliseconds is None and not self.extra)

    @property
    def absurd(self) -> bool:
        """Whether a count is below zero, above ``COUNT_MAX``, or no ``int``: such a usage counts as missing (H05)."""
        counts = (*self[:5], self.images or 0, self.milliseconds or 0)
        if all(type(count) is int and 0 <= count <= COUNT_MAX for count in counts):
            return not all(map(_is_amount, self.extra.values())) if self.extra else False
        return True

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Usage:
        """From an app's own words, or a provider's ``usage`` object.

        Own words are the names of the fields, ``seconds`` (``int``, ``Decimal`` or decimal text; rounded up to a
        millisecond), and any other, which goes to ``extra``. Raises ``ValueError`` where a count is none.
        """
        if not _PROVIDERS.isdisjoint(given) or given.get("type") == "duration":
            made = usage_of({"usage": given})
        else:
            fields = {name: given[name] for name in _FIELDS if given.get(name) is not None}
            if given.get("seconds") is not None:
                fields["milliseconds"] = _milliseconds(given["seconds"])
            extra = {name: value for name, value in given.items() if name not in _FIELDS and name != "seconds"}
            made = cls(**fields, extra=MappingProxyType(extra) if extra else _NOTHING)
        if made is None or made.absurd:
            raise ValueError("a usage has counts from 0 to 2**53, as int")
        return made


_FIELDS: Final = ("input", "output", "cached", "cache_write", "reasoning", "images", "milliseconds")
_PROVIDERS: Final = frozenset(("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"))


def _is_amount(value: object) -> bool:
    if type(value) is Decimal:
        return value.is_finite() and 0 <= value <= COUNT_MAX
    return type(value) is int and 0 <= value <= COUNT_MAX


def _milliseconds(seconds: Any) -> int:
    try:
        exact = Decimal(seconds) if type(seconds) in (str, int) else seconds
    except InvalidOperation:
        exact = None
    if type(exact) is not Decimal or not _is_amount(exact):
        raise ValueError("seconds are an int or a Decimal from 0")
    return int((exact * 1000).to_integral_value(ROUND_CEILING))


def usage_of(document: object) -> Usage | None:
    """The usage that a whole JSON answer states at its top level; None where there is none, or an absurd one (H05)."""
    stated = document.get("usage") if isinstance(document, dict) else None  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType]  # JSON
    if not isinstance(stated, dict):
        return None
    try:
        made = _read(cast("dict[str, Any]", stated))
    except ValueError:
        return None
    return None if made is None or made.absurd else made


def _read(stated: Mapping[str, Any]) -> Usage | None:
    if _states(stated, "prompt_tokens", "completion_tokens"):
        return _openai(stated, "prompt_tokens", "completion_tokens")
    if stated.get("type") == "duration" and _states(stated, "seconds"):  # OpenAI's transcriptions
        seconds = stated["seconds"]
        if type(seconds) is float:  # as its specification has it; taken as the decimal that it was written as
            return Usage(milliseconds=_milliseconds(Decimal(repr(seconds))))
        return Usage(milliseconds=_count(stated, "seconds") * 1000)
    if not _states(stated, "input_tokens", "output_tokens"):
        return None
    if "cache_read_input_tokens" in stated or "cache_creation_input_tokens" in stated:
        return Usage(
            input=_count(stated, "input_tokens"),
            output=_count(stated, "output_tokens"),
            cached=_count(stated, "cache_read_input_tokens"),
            cache_write=_count(stated, "cache_creation_input_tokens"),
        )
    return _openai(stated, "input_tokens", "output_tokens")


def _states(stated: Mapping[str, Any], *names: str) -> bool:
    return any(stated.get(name) is not None for name in names)


def _openai(stated: Mapping[str, Any], prompt_name: str, output_name: str) -> Usage:
    prompt, output = _count(stated, prompt_name), _count(stated, output_name)
    read, written = _details(stated, prompt_name), _details(stated, output_name)
    cached, cache_write = _count(read, "cached_tokens"), _count(read, "cache_write_tokens")
    reasoning = _count(written, "reasoning_tokens")
    # Some count the reasoning beside the answer; the total tells them from those that count it as part of it.
    if reasoning and _count(stated, "total_tokens") == prompt + output + reasoning:
        output += reasoning
    return Usage(prompt - cached - cache_write, output, cached, cache_write, reasoning)


def _details(stated: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    details = stated.get(f"{name}_details")
    return cast("dict[str, Any]", details) if isinstance(details, dict) else {}


def _count(stated: Mapping[str, Any], name: str) -> int:
    value = stated.get(name)
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= COUNT_MAX:
        raise ValueError(f"{name} is no count")
    return value
