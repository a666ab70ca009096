"""key=value arguments -> a dataclass, for the verbs that need no Hydra."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, TypeVar, get_type_hints

from xdistill import registry
from xdistill.errors import UsageError

T = TypeVar("T")
KINDS: dict[type, tuple[str, Callable[[str], Any]]] = {
    int: ("an integer", int),
    float: ("a number", float),
    str: ("a text", str),
    bool: ("true or false", lambda text: {"true": True, "false": False}[text.lower()]),
}
POSITIVE = ("num", "batch", "steps", "repeats", "threads")
NOT_NEGATIVE = ("teacher_steps", "noise_scale", "guidance", "temperature", "seed", "shard", "keep", "workers")


def split(args: Sequence[str]) -> dict[str, str]:
    """`key=value` strings; raises UsageError for anything else and for a repeated key."""
    pairs: dict[str, str] = {}
    for text in args:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"cannot read '{text}': expected key=value")
        if key in pairs:
            raise UsageError(f"'{key}' is given twice: {key}={pairs[key]} and {text}")
        pairs[key] = value
    return pairs


def prefixed(pairs: Mapping[str, str], prefix: str) -> tuple[dict[str, str], dict[str, str]]:
    """Keys `prefix.KEY` without their prefix, and the other pairs."""
    own = {key: value for key, value in pairs.items() if key.startswith(f"{prefix}.")}
    others = {key: value for key, value in pairs.items() if key not in own}
    return {key.removeprefix(f"{prefix}."): value for key, value in own.items()}, others


def method_keys(pairs: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Options `method.OPTION=VALUE` of a sampler's method, and the other pairs."""
    own, others = prefixed(pairs, "method")
    words = {"true": True, "false": False}
    return {key: words[text.lower()] if text.lower() in words else _plain(text) for key, text in own.items()}, others


def domain_class(pairs: Mapping[str, str]) -> type[Any]:
    """The class of `domain=NAME`; raises UsageError that lists the domains."""
    if not pairs.get("domain"):
        raise UsageError(f"which domain? Give domain=NAME: {', '.join(registry.names('domains'))}")
    return registry.load("domains", pairs["domain"])


def read(
    schema: type[T], pairs: Mapping[str, str], also: Mapping[str, str] | None = None, texts: Collection[str] = ()
) -> tuple[T, dict[str, Any]]:
    """An instance of `schema`, and what was given of the keys `also` (a domain's request); `texts` stay as written.

    A key `say.*` of `also` takes any `say.NAME=VALUE`, and gives `say` as a dictionary of texts.

    Raises UsageError for an unknown key (with the nearest one), a wrong type or a value out of range.
    """
    types, also = get_type_hints(schema), also or {}
    values: dict[str, Any] = {}
    request: dict[str, Any] = {}
    for key, text in pairs.items():
        name = key.replace(".", "_")  # ray.address is the field ray_address
        group, _, rest = key.partition(".")
        if rest and f"{group}.*" in also:
            request.setdefault(group, {})[rest] = text
        elif key in also:
            request[key] = text if key in texts else _plain(text)
        elif name in types:
            values[name] = _typed(schema, name, text, types[name])
        else:
            raise UsageError(f"unknown key '{key}'{registry.nearest(key, {*types, *also})}")
    return schema(**values), request


def _typed(schema: type[Any], key: str, text: str, hint: Any) -> Any:
    options = [t for t in getattr(hint, "__args__", (hint,)) if t is not type(None)]
    if text in ("null", "") and len(options) < len(getattr(hint, "__args__", (hint,))):
        return None
    what, convert = KINDS[options[0]]
    try:
        value = convert(text)
    except (ValueError, KeyError):
        default = next(f.default for f in fields(schema) if f.name == key)
        example = "" if default in (None, MISSING, False) else f", e.g. {key}={default}"
        raise UsageError(f"{key}={text}: expected {what}{example}") from None
    least = next(f.metadata.get("least", 1) for f in fields(schema) if f.name == key)
    if key in POSITIVE and not isinstance(value, str) and value < least:
        raise UsageError(f"{key}={text}: expected at least {least}")
    if key in NOT_NEGATIVE and not isinstance(value, str) and not 0 <= value < float("inf"):
        raise UsageError(f"{key}={text}: expected at least 0")
    return value


def _plain(text: str) -> int | float | str:
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text
