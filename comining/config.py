"""From composed yaml to objects: the constructor's signature is the schema."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from comining.errors import ConfigError, UserError


def slug(text: str) -> str:
    """A folder name out of any text; a hash keeps apart what the shortening makes alike."""
    name = re.sub(r"[^\w=.,+-]", "_", text)
    if name == text and len(name) <= 200:
        return name or "default"
    return f"{name[:180]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


OmegaConf.register_new_resolver("slug", slug, replace=True)

CONFIG_FOLDER = Path(__file__).resolve().parents[1] / "conf"

# A configuration may come out of somebody else's checkpoint; it builds nothing but these.
ALLOWED_TARGETS = ("comining.", "torch.optim.", "lightning.pytorch.")


def instantiate(node: DictConfig, name: str, **given: Any) -> Any:
    """Build the object of a ``_target_`` node, after checking every option against its signature.

    Args:
        name: where the node stands in the configuration, for messages.
        given: arguments that are not configuration (objects built from other nodes).

    Raises:
        ConfigError: naming the option.
    """
    options = resolve(node, name)
    check(options, name, given)
    try:
        # Objects are given to the constructor directly: Hydra would turn dataclasses into options.
        build = hydra.utils.instantiate({**options, "_partial_": True}, _convert_="all")
        return functools.partial(build, **given) if options.get("_partial_") else build(**given)
    except InstantiationException as error:  # out of a nested node
        raise _refusal(error.__cause__) or error from error
    except (ValueError, ConnectionError) as error:
        raise _refusal(error) or error from error


def _refusal(cause: BaseException | None) -> UserError | None:
    """What a constructor that refused its arguments has to say to the user."""
    if isinstance(cause, UserError):
        return cause
    return ConfigError(str(cause)) if isinstance(cause, ValueError | ConnectionError) else None


def resolve(node: DictConfig, name: str = "configuration") -> dict[str, Any]:
    """A configuration as plain containers, without references.

    Raises:
        ConfigError: a mandatory option is missing, or a reference leads nowhere.
    """
    try:
        options: Any = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"option {error.full_key} is missing") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    if not isinstance(options, dict):
        raise ConfigError(f"{name}: not a group of options: {options!r}")
    return options


def instantiate_file(file: Path, overrides: Mapping[str, Any]) -> Any:
    """Build the object of one yaml file of the configuration, with some options replaced."""
    node = OmegaConf.load(file)
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{file}: not a group of options")
    unknown = set(overrides) - set(node)
    if unknown:
        raise ConfigError(f"{file.stem} has no option {', '.join(sorted(unknown))}")
    return instantiate(OmegaConf.merge(node, dict(overrides)), file.stem)  # type: ignore[arg-type]


def check(options: Mapping[str, Any], name: str, given: Mapping[str, Any]) -> None:
    """Check options, and those of nested nodes, against the signatures of their targets."""
    nested = [key for key, value in options.items() if _is_node(value)]
    for key in nested:
        check(options[key], f"{name}.{key}", {})
    if "_target_" not in options:
        return
    target = locate(options["_target_"], name)
    signature = inspect.signature(target)
    hints = _hints(target)
    accepts_all = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for key, value in options.items():
        if key in ("_target_", "_partial_", "_convert_", "_recursive_"):
            continue
        if key not in signature.parameters:
            if accepts_all:
                continue
            known = ", ".join(p for p in signature.parameters if p not in (*given, "self"))
            raise ConfigError(f"unknown option {name}.{key}; known here: {known}")
        if key not in nested and key in hints and not fits(value, hints[key]):
            raise ConfigError(f"{name}.{key}={value!r} must be {_describe(hints[key])}")
    if options.get("_partial_"):
        return
    for key, parameter in signature.parameters.items():
        required = parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        )
        if required and key not in options and key not in given:
            raise ConfigError(f"option {name}.{key} is missing")


def locate(target: str, name: str) -> Callable[..., Any]:
    """The class or function that a ``_target_`` names, if it is one that may be built."""
    if not isinstance(target, str) or not target.startswith(ALLOWED_TARGETS):
        raise ConfigError(f"{name}._target_={target!r} is not one of {', '.join(ALLOWED_TARGETS)}")
    try:
        found: Callable[..., Any] = hydra.utils.get_object(target)
    except Exception as error:
        raise ConfigError(f"{name}._target_={target!r} cannot be imported ({error})") from error
    # A path may lead out again through a module that one of ours imports.
    if not f"{getattr(found, '__module__', '')}.".startswith(ALLOWED_TARGETS):
        raise ConfigError(f"{name}._target_={target!r} is defined outside of what may be built")
    return found


def fits(value: object, hint: Any) -> bool:
    """Whether a value out of yaml suits an annotation; annotations it cannot judge suit."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in arguments)
    if origin is typing.Literal:
        return value in arguments
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    if origin in (Sequence, list):
        return isinstance(value, list | tuple) and all(fits(part, arguments[0]) for part in value)
    if origin is tuple:
        return isinstance(value, list | tuple)
    if origin in (Mapping, dict):
        return isinstance(value, dict)
    # A nested node becomes the object, which is only there once it is built.
    return isinstance(hint, typing.TypeVar) or not isinstance(value, int | float | str | bool)


def _is_node(value: object) -> bool:
    return isinstance(value, dict) and "_target_" in value


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):  # a foreign signature with names that exist for checkers only
        return {}


def _describe(hint: Any) -> str:
    return getattr(hint, "__name__", None) or str(hint).replace("typing.", "")
