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
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from comining.errors import ConfigError, UserError


def slug(text: str) -> str:
    """A folder name out of any text; a hash keeps apart what the shortening makes alike."""
    name = re.sub(r"[^\w=.,+-]", "_", text)
    if name == text and len(name) <= 200:
        return name or "default"
    return f"{name[:180]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def run_dir(resume: str | None, new: str) -> str:
    """Where a run writes to: into the run that it resumes, or a new directory."""
    return new if resume in (None, "auto") else str(resume)


OmegaConf.register_new_resolver("slug", slug, replace=True)
OmegaConf.register_new_resolver("run_dir", run_dir, replace=True)

CONFIG_FOLDER = Path(__file__).resolve().parents[1] / "conf"

# A configuration may come out of somebody else's checkpoint, and a constructor that is called with
# somebody else's arguments may do anything: write a file, load a pickle, run a program. So nothing
# is built but classes of this package, functions of its modules that hold nothing but builders, and
# what the configurations need of torch and Lightning.
ALLOWED_TARGETS = ("comining.", "torch.optim.", "lightning.pytorch.Trainer")
BUILDERS = ("comining.detectors.",)
CLASSES = ("comining.", "torch.optim.", "lightning.pytorch.trainer.")

# _convert_ is accepted for those who know Hydra: containers are always plain ones.
CONTROL = ("_target_", "_partial_", "_convert_")


def instantiate(node: DictConfig, name: str, **given: Any) -> Any:
    """Build the object of a ``_target_`` node, after checking every option against its signature.

    Nodes inside it, in lists and groups of options too, are built first. (Not by Hydra's
    ``instantiate``, which resolves references a second time: what an option's text holds would
    then be executed.)

    Args:
        name: where the node stands in the configuration, for messages.
        given: arguments that are not configuration (objects built from other nodes).

    Raises:
        ConfigError: naming the option.
    """
    options = resolve(node, name)
    check(options, name, given)
    return _build(options, name, given)


def _build(value: Any, name: str, given: Mapping[str, Any]) -> Any:
    if isinstance(value, list | tuple):
        return [_build(part, f"{name}[{number}]", {}) for number, part in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if "_target_" not in value:
        return {key: _build(part, f"{name}.{key}", {}) for key, part in value.items()}
    options = {
        key: _build(part, f"{name}.{key}", {}) for key, part in value.items() if key not in CONTROL
    }
    target = locate(value["_target_"], name)
    build = functools.partial(target, **{**options, **given})
    foreign = not value["_target_"].startswith("comining.")
    try:
        if not value.get("_partial_"):
            return build()
        if value["_target_"].startswith("torch.optim."):
            # What it has against its options shall be found now, not when training begins.
            build([_parameter()])
        return build
    except UserError:
        raise
    except Exception as error:  # each library has its own
        if not foreign and not isinstance(error, ValueError | ConnectionError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        if foreign:  # their messages do not name the option
            told = ", ".join(f"{key}={option!r}" for key, option in options.items())
            reason = f"{name} ({told}): {reason}"
        raise ConfigError(reason) from error


def _parameter() -> Any:
    import torch

    return torch.nn.Parameter(torch.zeros(1))


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
    for key, value in options.items():
        _check_parts(value, f"{name}.{key}")
    if "_target_" not in options:
        return
    target = locate(options["_target_"], name)
    if not isinstance(options.get("_partial_", False), bool):
        raise ConfigError(f"{name}._partial_={options['_partial_']!r} must be bool")
    signature = inspect.signature(target)
    hints = _hints(target)
    accepts_all = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for key, value in options.items():
        if key in CONTROL:
            continue
        if key not in signature.parameters:
            if accepts_all and isinstance(key, str) and not key.startswith("_"):
                continue
            known = ", ".join(p for p in signature.parameters if p not in (*given, "self"))
            raise ConfigError(f"unknown option {name}.{key}; known here: {known}")
        if not _is_node(value) and key in hints and not fits(value, hints[key]):
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


def _check_parts(value: Any, name: str) -> None:
    if isinstance(value, dict):
        check(value, name, {})
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            _check_parts(part, f"{name}[{number}]")


def locate(target: str, name: str) -> Callable[..., Any]:
    """The class or function that a ``_target_`` names, if it is one that may be built."""
    if not isinstance(target, str) or not target.startswith(ALLOWED_TARGETS):
        raise ConfigError(f"{name}._target_={target!r} is not one of {', '.join(ALLOWED_TARGETS)}")
    try:
        found: Callable[..., Any] = hydra.utils.get_object(target)
    except Exception as error:
        raise ConfigError(f"{name}._target_={target!r} cannot be imported ({error})") from error
    # A path may lead out again through a module that one of ours imports, and not all that is
    # ours is made for building.
    kinds = CLASSES if inspect.isclass(found) else BUILDERS if inspect.isfunction(found) else ()
    if not f"{getattr(found, '__module__', '')}.".startswith(tuple(kinds)):
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
        if not isinstance(value, list | tuple):
            return False
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            return False
        parts = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return all(map(fits, value, parts))
    if origin in (Mapping, dict):
        key_hint, value_hint = arguments
        return isinstance(value, dict) and all(
            fits(key, key_hint) and fits(part, value_hint) for key, part in value.items()
        )
    # A nested node becomes the object, which is only there once it is built.
    return isinstance(hint, typing.TypeVar) or _is_node(value)


def _is_node(value: object) -> bool:
    return isinstance(value, dict) and "_target_" in value


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):  # a foreign signature with names that exist for checkers only
        return {}


def _describe(hint: Any) -> str:
    if inspect.isclass(hint) and not typing.get_origin(hint):
        return hint.__name__
    return re.sub(r"\b(typing|collections\.abc)\.", "", str(hint))
