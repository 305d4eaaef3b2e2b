"""From composed yaml to objects: the constructor's signature is the schema."""

from __future__ import annotations

import functools
import inspect
import os
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from comining.errors import ConfigError, UserError
from comining.option_types import Nested, misfit, shown


def run_dir(resume: str | None, new: str) -> str:
    """The directory that a run writes to: that of the run it resumes, or a new one."""
    return new if resume in (None, "auto") else str(resume)


def environment(name: str, default: Any) -> Any:
    """An environment variable, or the default if it is unset or empty."""
    return os.environ.get(name) or default


def wandb_mode() -> str:
    """``logger.mode`` from W&B's own environment variables; offline if none is set."""
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "t", "yes", "y", "on"):
        return "disabled"
    mode: str = environment("WANDB_MODE", "offline")
    return {"dryrun": "offline", "run": "online"}.get(mode, mode)


OmegaConf.register_new_resolver("environment", environment, replace=True)
OmegaConf.register_new_resolver("wandb_mode", wandb_mode, replace=True)
OmegaConf.register_new_resolver("run_dir", run_dir, replace=True)

CONFIG_FOLDER = Path(__file__).resolve().parents[1] / "conf"

# A configuration may come from somebody else's checkpoint, and a constructor called with somebody
# else's arguments may do anything: write a file, load a pickle, run a program. So only these are
# built: classes of this package, functions of its modules that contain only builders, and what the
# configurations need from torch and Lightning.
ALLOWED_TARGETS = ("comining.", "torch.optim.", "lightning.pytorch.Trainer")
BUILDERS = ("comining.detectors.",)
CLASSES = ("comining.", "torch.optim.", "lightning.pytorch.trainer.")

# Each group builds only what belongs in it: subclasses of a class, or what a module defines.
# (Dotted names, because this module must not import the modules that use it.) A nested group is
# checked against the annotation of its option.
GROUPS = {
    "backbone": "comining.detectors.backbones.Backbone",
    "checkpoint": "comining.training.callbacks.saving.StepCheckpoint",
    "data": "comining.data.datamodule.DetectionData",
    "detector": "comining.detectors.detector.Detector",
    "fit": "comining.data.fitting.FitToData",
    "logger": "comining.tracking.tracker.Tracker",
    "method": "comining.methods.method.Method",
    "optimizer": "torch.optim.Optimizer",
    "parameter_groups": "comining.training.training_module.ParameterGroups",
    "pictures": "comining.training.callbacks.pictures.Pictures",
    "schedule": "comining.training.schedule",
    "sparsity": "comining.data.sparsity.Sparsity",
    "trainer": "lightning.pytorch.Trainer",
    "view": "comining.data.views.SecondView",
}
# Groups whose objects are given the rest of their arguments later (``_partial_: true``).
PARTIAL = ("optimizer",)

# _convert_ is accepted because Hydra has it, but containers are always plain.
CONTROL = ("_target_", "_partial_", "_convert_")


def instantiate(node: DictConfig, name: str, **given: Any) -> Any:
    """Build the object of a ``_target_`` node, after checking every option against its signature.

    Nodes inside it, in lists and groups of options too, are built first. (Not with Hydra's
    ``instantiate``, which resolves references a second time and would execute those in the text of
    an option.)

    Args:
        name: of the group, a key of :data:`GROUPS`.
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
            # Wrong options should be reported now, not when training begins.
            build([_parameter()])
        return build
    except UserError:
        raise
    except Exception as error:  # every library raises its own
        if not foreign and not isinstance(error, ValueError | ConnectionError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        if foreign:  # their messages do not name the option
            options_given = ", ".join(f"{key}={option!r}" for key, option in options.items())
            reason = f"{name} ({options_given}): {reason}"
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
    """Build the object of one yaml file of the configuration, with some options replaced.

    Args:
        file: in the folder of its group.
    """
    node = OmegaConf.load(file)
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{file}: not a group of options")
    unknown = set(overrides) - set(node)
    if unknown:
        raise ConfigError(f"{file.stem} has no option {', '.join(sorted(unknown))}")
    merged: Any = OmegaConf.merge(node, dict(overrides))
    return instantiate(merged, file.parent.name)


def check(options: Mapping[str, Any], name: str, given: Mapping[str, Any]) -> None:
    """Check a group of options, and the groups inside it, against the signatures of their targets.

    Args:
        name: of the group, a key of :data:`GROUPS`.
        given: arguments that are not configuration.

    Raises:
        ConfigError: naming the option, its value and what is allowed.
    """
    if name not in GROUPS:
        raise ConfigError(f"{name}: no group of options; there are {', '.join(GROUPS)}")
    if "_target_" not in options:
        raise ConfigError(f"option {name}._target_ is missing")
    target = locate(options["_target_"], name)
    if not _belongs(target, GROUPS[name]):
        raise ConfigError(
            f"{name}._target_={shown(options['_target_'])} cannot be used here: the group {name} "
            f"takes {GROUPS[name]} only"
        )
    _check_signature(target, options, name, given, partial=name in PARTIAL)


def _belongs(target: Callable[..., Any], wanted: str) -> bool:
    """Whether a target builds an instance of this class, or is defined in this module."""
    found = hydra.utils.get_object(wanted)
    if inspect.ismodule(found):
        return f"{target.__module__}.".startswith(f"{found.__name__}.")
    builds = _builds(target)
    return builds is not None and issubclass(builds, found)


def _check_signature(
    target: Callable[..., Any],
    options: Mapping[str, Any],
    name: str,
    given: Mapping[str, Any],
    partial: bool,
) -> None:
    signature = inspect.signature(target)
    hints = _hints(target)
    accepts_all = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for key, value in options.items():
        if key in CONTROL:
            continue
        with_nested = _with_nested(value, f"{name}.{key}")
        if key not in signature.parameters:
            if accepts_all and isinstance(key, str) and not key.startswith("_"):
                continue
            known = ", ".join(p for p in signature.parameters if p not in (*given, "self"))
            raise ConfigError(f"unknown option {name}.{key}; valid options: {known}")
        problem = misfit(with_nested, hints.get(key, Any), f"{name}.{key}")
        if problem is not None:
            raise ConfigError(problem)
        _check_nested(value, f"{name}.{key}")
    if options.get("_partial_", False) is not partial:
        given_value = shown(options.get("_partial_"))
        raise ConfigError(f"{name}._partial_={given_value} must be {shown(partial)}")
    for key, parameter in signature.parameters.items():
        required = parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        )
        if required and key not in options and key not in given and not partial:
            raise ConfigError(f"option {name}.{key} is missing")


def _with_nested(value: Any, name: str) -> Any:
    """A value with :class:`Nested` in place of groups that build something."""
    if isinstance(value, list | tuple):
        return [_with_nested(part, f"{name}[{number}]") for number, part in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if "_target_" in value:
        return Nested(value["_target_"], _builds(locate(value["_target_"], name)))
    return {key: _with_nested(part, f"{name}.{key}") for key, part in value.items()}


def _check_nested(value: Any, name: str) -> None:
    if isinstance(value, list | tuple):
        for number, part in enumerate(value):
            _check_nested(part, f"{name}[{number}]")
    elif isinstance(value, dict) and "_target_" in value:
        _check_signature(locate(value["_target_"], name), value, name, {}, partial=False)
    elif isinstance(value, dict):
        for key, part in value.items():
            _check_nested(part, f"{name}.{key}")


def locate(target: str, name: str) -> Callable[..., Any]:
    """The class or function that a ``_target_`` names, if it may be built."""
    if not isinstance(target, str) or not target.startswith(ALLOWED_TARGETS):
        allowed = ", ".join(ALLOWED_TARGETS)
        raise ConfigError(f"{name}._target_={shown(target)} is not one of {allowed}")
    try:
        found: Callable[..., Any] = hydra.utils.get_object(target)
    except Exception as error:
        raise ConfigError(
            f"{name}._target_={shown(target)} cannot be imported ({error})"
        ) from error
    # A dotted path may lead out of the package through an import, and not everything in the package
    # is meant to be built.
    kinds = CLASSES if inspect.isclass(found) else BUILDERS if inspect.isfunction(found) else ()
    if not f"{getattr(found, '__module__', '')}.".startswith(tuple(kinds)):
        raise ConfigError(
            f"{name}._target_={target!r} is not defined in a module whose objects may be built"
        )
    if inspect.isabstract(found):
        raise ConfigError(
            f"{name}._target_={target!r} is a base class, which cannot be built itself"
        )
    return found


def _builds(target: Callable[..., Any]) -> type | None:
    """The class that a target builds: itself, or the return annotation of a function."""
    builds = target if inspect.isclass(target) else _hints(target).get("return")
    return builds if inspect.isclass(builds) else None


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):  # a foreign signature with names that exist for checkers only
        return {}
