"""How many tokens a request can make a model read and write, before it has done so. Pure.

A token of a byte-level or sentence-piece vocabulary stands for at least one byte of the text, and JSON writes no text
with fewer bytes than UTF-8 has. The body's length is therefore a bound on the prompt, with room in the JSON around each
message for what a chat template puts there; what a template adds once is ``overhead``. What the body only names (an
image by its URL, an earlier answer by its id) has no such bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from ..errors import BadRequest
from .price import Call

__all__ = ["OUTPUT_NAMES", "body_of", "outputs", "parts", "prompt_bytes"]

OUTPUT_NAMES: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens", "n_predict")
"""The last is llama.cpp's, for which it counts more than the others."""
_CHOICES_MAX: Final = 128
_ELSEWHERE: Final = ("previous_response_id", "conversation")
_ELSEWHERE_PARTS: Final = ("item_reference", "id")
"""An earlier answer, of any length, by its id, with a type or without."""
_TEXT: Final = {
    *("text", "input_text", "output_text", "summary_text", "refusal", "thinking", "redacted_thinking", "reasoning"),
    *("message", "tool_use", "tool_result", "function_call", "function_call_output"),
    *("custom_tool_call", "custom_tool_call_output"),
}
_MEDIA: Final = {"image_url", "input_image", "image", "input_audio", "audio", "video_url", "input_video", "video"}
"""Parts that hold no text, so that their bytes are not tokens of it. A file may hold text."""
_READ: Final = frozenset((*OUTPUT_NAMES, *_ELSEWHERE, "model", "messages", "input", "system", "prompt", "n", "best_of"))
_PART: Final = frozenset(("type", "role", "content", "output", "audio"))
_PLAIN: Final = {"type", "text", "content", "output", "refusal", "cache_control", "role"}


def body_of(call: Call, *names: str) -> dict[str, Any]:
    """The body: a JSON object that spells what its price reads, ``names`` too, as we do. Else ``BadRequest``."""
    body = call.json
    if not isinstance(body, dict):
        raise BadRequest("invalid_request", detail="the body is no JSON object")
    body = cast("dict[str, Any]", body)
    _check_spelling(body, _READ.union(names))
    return body


def _check_spelling(item: Mapping[str, Any], names: frozenset[str]) -> None:
    """There are servers that read ``Max_Tokens`` as ``max_tokens``, and take the last of both (A12)."""
    if item.keys() <= names:
        return
    known = {name.casefold() for name in names}
    for name in item:
        if name not in names and name.casefold() in known:
            raise BadRequest("invalid_request", detail=f"{name[:40]!r} is another name's spelling")


def prompt_bytes(call: Call, body: Mapping[str, Any], per_part: int | Mapping[str, int] | None) -> tuple[int, int]:
    """The bytes of text in the body, and the tokens of its other parts by the seller's bound for each.

    ``BadRequest`` for what has no bound.
    """
    for name in _ELSEWHERE:
        if body.get(name) is not None:
            raise BadRequest("not_priceable", detail=f"{name}: only what the request itself holds can be priced")
    if isinstance(body.get("prompt"), dict):
        raise BadRequest("not_priceable", detail="prompt: only what the request itself holds can be priced")
    size, tokens = len(call.body), 0
    for kind, length in parts(body):
        tokens += _bound(kind, per_part)
        size -= length
    return max(size, 0), tokens


def _bound(kind: str, per_part: int | Mapping[str, int] | None) -> int:
    bound = per_part.get(kind) if isinstance(per_part, Mapping) else per_part
    if bound is None or (bound is per_part and kind in _ELSEWHERE_PARTS):
        raise BadRequest("not_priceable", detail=f"a part of type {kind[:40]!r} has no price here")
    return bound


def parts(body: Mapping[str, Any]) -> list[tuple[str, int]]:
    """What in the body is no text: the type of each such part, and how many of its bytes are media.

    Those are its longest string, in base64 or a URL; so the text around it is still counted.
    """
    found: list[tuple[str, int]] = []
    # What has a role is a message, but not inside of one.
    waiting: list[tuple[Any, bool]] = [(body.get(name), True) for name in ("messages", "input", "system")]
    while waiting:
        item, outer = waiting.pop()
        if isinstance(item, list):
            waiting += [(each, outer) for each in cast("list[object]", item)]
        elif isinstance(item, dict):
            item = cast("dict[str, Any]", item)
            _check_spelling(item, _PART)
            is_message = outer and "role" in item
            kind = _kind(item, is_message)
            if kind not in _TEXT:
                found.append((kind, _longest(item) if kind in _MEDIA and not is_message else 0))
                if not is_message:  # else what answers reads it as one, whatever type its caller gives it
                    continue
            waiting += [(item.get("content"), False), (item.get("output"), False)]
            if isinstance(item.get("audio"), dict):  # an earlier answer's, by its id
                found.append(("audio", 0))
    return found


def _kind(item: Mapping[str, Any], is_message: bool) -> str:
    """The type of a part; of one that states none, as some servers read it: the first name that is not text's."""
    kind = item.get("type")
    if kind is not None:
        return kind if isinstance(kind, str) else repr(kind)
    return "message" if is_message else min(item.keys() - _PLAIN, default="text")


def _longest(item: dict[str, Any]) -> int:
    longest, waiting = 0, [value for name, value in item.items() if name not in ("text", "content")]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            longest = max(longest, len(value)) if value.isascii() else longest
        elif isinstance(value, dict):
            waiting += cast("dict[str, Any]", value).values()
        elif isinstance(value, list):
            waiting += value
    return longest


def outputs(body: Mapping[str, Any], default: int, most: int) -> int:
    """The most tokens that all answers together can have: the caller's cap, or ``default``, for each of them.

    Where the caller states several caps the largest counts. ``BadRequest`` for a cap above ``most``, or none at all.
    """
    stated = [_whole(body, name, most) for name in OUTPUT_NAMES if body.get(name) is not None]
    choices = max(_whole(body, name, _CHOICES_MAX) if body.get(name) is not None else 1 for name in ("n", "best_of"))
    prompts: Any = body.get("prompt")
    if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int):
        choices *= len(cast("list[object]", prompts))
    return choices * (max(stated) if stated else default)


def _whole(body: Mapping[str, Any], name: str, most: int) -> int:
    value = body[name]
    if type(value) is not int or not 1 <= value <= most:
        raise BadRequest("invalid_request", detail=f"{name} must be a whole number from 1 to {most}")
    return value
