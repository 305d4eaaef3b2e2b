"""Types of options, checked by pydantic and described in plain English.

The signature of a constructor is the schema of its group of options. It uses the names below
besides ``int``, ``float``, ``bool``, ``str``, ``Literal``, sequences and mappings. Values are
checked as written in the yaml: ``"1"`` is not a number, ``True`` is not 1, an integer is a valid
float, and NaN and infinity are not.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

from pydantic import AfterValidator, AllowInfNan, Field, Strict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
# Probabilities, IoUs, shares and factors.
Fraction = Annotated[float, Field(ge=0, le=1)]
# Shares that leave something on both sides.
Share = Annotated[float, Field(gt=0, lt=1)]

SEQUENCES = (Sequence, list, Iterable, Collection)
MAPPINGS = (Mapping, dict)
LIMITS = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
STRICT = {
    bool: Annotated[bool, Strict()],
    int: Annotated[int, Strict()],
    float: Annotated[float, Strict(), AllowInfNan(False)],
    str: Annotated[str, Strict()],
}


@dataclass(frozen=True)
class Nested:
    """A group with a ``_target_``, as the value of an option before it is built.

    Args:
        target: the dotted name.
        builds: the class of the object; None if it is not known.
    """

    target: str
    builds: type | None


def misfit(value: Any, hint: Any, name: str) -> str | None:
    """What is wrong with the value of an option, in one line; None if nothing is.

    Args:
        value: plain containers and scalars, with :class:`Nested` for groups that build something.
        name: of the option; nested values are named ``name.key`` and ``name[0]``.
    """
    if suits(value, hint):
        return None
    for place, part, part_hint in _parts(value, hint, name):
        problem = misfit(part, part_hint, place)
        if problem is not None:
            return problem
    if isinstance(value, Nested):
        return f"{name}._target_={value.target!r} cannot be used here: {name} must be " + (
            describe(hint)
        )
    return f"{name}={shown(value)} must be {describe(hint)}"


def suits(value: Any, hint: Any) -> bool:
    """Whether a value is one that an annotation allows."""
    try:
        TypeAdapter(_strict(hint)).validate_python(value)
    except ValidationError:
        return False
    return True


def shown(value: Any) -> str:
    """A value as written in yaml, shortened to fit a line."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 100 else f"{text[:80]}...{text[-17:]}"


# -- pydantic ----------------------------------------------------------------------------


def _strict(hint: Any) -> Any:
    """The annotation for pydantic: strict scalars, any list for a sequence or tuple.

    (Its own strict mode refuses a list for a tuple, and yaml has nothing but lists.)
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is None or hint is type(None) or origin is Literal:
        return hint
    if origin is Annotated:
        return Annotated[(_strict(arguments[0]), *hint.__metadata__)]
    if origin in (Union, types.UnionType):
        return Union[tuple(map(_strict, arguments))]  # noqa: UP007  # of a number known only here
    if origin in SEQUENCES:
        return list[_strict(arguments[0])]  # type: ignore[misc]
    if origin is tuple:
        parts = (part if part is Ellipsis else _strict(part) for part in arguments)
        return tuple[tuple(parts)]  # type: ignore[misc]
    if origin in MAPPINGS:
        return dict[_strict(arguments[0]), _strict(arguments[1])]  # type: ignore[misc]
    if hint in STRICT:
        return STRICT[hint]
    return Annotated[Any, AfterValidator(functools.partial(_check_other, hint))]


def _check_other(hint: Any, value: Any) -> Any:
    """Classes accept a group that builds them; ``Any`` accepts everything."""
    if _is_open(hint):
        allowed = not _holds_nested(value)
    else:
        builds = value.builds if isinstance(value, Nested) else None
        allowed = inspect.isclass(hint) and builds is not None and issubclass(builds, hint)
    if not allowed:
        raise ValueError("not allowed")
    return value


def _is_open(hint: Any) -> bool:
    return hint is Any or hint is inspect.Parameter.empty or isinstance(hint, typing.TypeVar)


def _holds_nested(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_nested, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_nested, value))
    return isinstance(value, Nested)


def _parts(value: Any, hint: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Name, value and annotation of each item of a container of the right type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        yield from _parts(value, arguments[0], name)
    elif origin in (Union, types.UnionType):
        containers = [part for part in arguments if any(True for _ in _parts(value, part, name))]
        if len(containers) == 1:
            yield from _parts(value, containers[0], name)
    elif isinstance(value, list | tuple):
        if origin in SEQUENCES or (origin is tuple and arguments[-1] is Ellipsis):
            hints = [arguments[0]] * len(value)
        else:
            hints = list(arguments) if origin is tuple and len(arguments) == len(value) else []
        for number, (part, part_hint) in enumerate(zip(value, hints)):
            yield f"{name}[{number}]", part, part_hint
    elif isinstance(value, Mapping) and origin in MAPPINGS:
        for key, part in value.items():
            if suits(key, arguments[0]):
                yield f"{name}.{key}", part, arguments[1]


# -- plain English -----------------------------------------------------------------------


def describe(hint: Any) -> str:
    """What an annotation allows, e.g. ``a whole number of at least 1 or null``."""
    return " or ".join(_words(hint, many=False)) or "left out"


def _words(hint: Any, many: bool) -> list[str]:
    """The alternatives in words; none for types no option has. ``many``: in the plural."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    scalars = {
        bool: ("true or false", "true or false"),
        int: ("a whole number", "whole numbers"),
        float: ("a number", "numbers"),
        str: ("a text", "texts"),
        None: ("null", "null"),
        type(None): ("null", "null"),
    }
    if origin is Annotated:
        return [word + _range(hint.__metadata__) for word in _words(arguments[0], many)]
    if origin in (Union, types.UnionType):
        return list(dict.fromkeys(word for part in arguments for word in _words(part, many)))
    if origin is Literal:
        choices = ", ".join(map(str, arguments))
        if many:
            return [f"texts, each one of {choices}"]
        return [choices if len(arguments) == 1 else f"one of {choices}"]
    if origin in SEQUENCES or (origin is tuple and arguments[-1] is Ellipsis):
        return [_prefixed("lists of " if many else "a list of ", arguments[0])]
    if origin is tuple and len(set(arguments)) == 1:
        article = "lists" if many else "a list"
        return [_prefixed(f"{article} of {len(arguments)} ", arguments[0])]
    if origin is tuple:
        listed = ", ".join(map(describe, arguments))
        return [f"{'lists' if many else 'a list'} of {len(arguments)} values ({listed})"]
    if origin in MAPPINGS:
        return [_prefixed("groups of " if many else "a group of ", arguments[1])]
    if hint in scalars:
        return [scalars[hint][many]]
    if _is_open(hint):
        return ["any value"]
    if inspect.isclass(hint) and hint.__module__.startswith("comining."):
        groups = "groups that build" if many else "a group that builds"
        return [f"{groups} {hint.__name__}"]
    return []


def _prefixed(before: str, hint: Any) -> str:
    return before + (" or ".join(_words(hint, many=True)).replace("any value", "options") or "none")


def _range(metadata: Iterable[Any]) -> str:
    """The words for the limits of a number, e.g. `` from 0 to 1``."""
    limits: dict[str, Any] = {}
    for constraint in metadata:
        for part in constraint.metadata if isinstance(constraint, FieldInfo) else [constraint]:
            limits |= {name: getattr(part, name) for name in LIMITS if hasattr(part, name)}
    if {"ge", "le"} <= limits.keys():
        return f" from {limits['ge']} to {limits['le']}"
    return " and".join(f" {LIMITS[name]} {limit}" for name, limit in limits.items())
