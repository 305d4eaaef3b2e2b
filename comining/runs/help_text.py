"""``--help``, and suggestions for a group, choice or option that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from comining.config import CONFIG_FOLDER
from comining.errors import ConfigError

# Groups that only other files of the configuration choose from, and files that others build on.
INTERNAL_GROUPS = ("table4_row",)
INTERNAL_CHOICES = ("base",)

# Groups that are preferred where several have an option of the same name.
USUAL_GROUPS = ("data", "method", "optimizer", "trainer")

# For each program: its usage, and the options changed most often.
USAGE = {
    "train": ("python train.py [-m] [GROUP=CHOICE ...] [OPTION=VALUE ...]", "Train a detector."),
    "evaluate": (
        "python evaluate.py checkpoint=PATH [OPTION=VALUE ...]",
        "Evaluate a checkpoint, or show what it detects in pictures (images=DIR).",
    ),
}
OPTIONS = {
    "train": {
        "data.root": "folder of the data",
        "tau": "score threshold of comining, self_mining, mean_teacher and pseudo_label",
        "seed": "of initial weights, order of images and second views, not of what is erased",
        "trainer.max_steps": "length of training, in optimizer steps",
        "data.batch_size": "images per batch, on all devices together",
        "optimizer.lr": "learning rate; not scaled with the batch size",
        "data.min_size": "shorter side of the resized images, px",
        "trainer.val_check_interval": "steps between two validations",
        "weights": "start from a checkpoint, or from torchvision's weights (coco)",
        "resume": "resume the run in this directory",
    },
    "evaluate": {
        "checkpoint": "file to evaluate: RUN/checkpoints/last.ckpt",
        "split": "val, or test if the data have a test split",
        "images": "a picture or a folder of pictures, instead of a data set",
        "score_threshold": "detections below it are not drawn",
        "coco_results": "also write the detections in COCO's results format",
        "trainer.accelerator": "cpu, gpu, or auto for what is available",
    },
}  # fmt: skip
MORE = {
    "train": """\
-m OPTION=A,B,... runs a sweep. All options and their values: python train.py --cfg job --resolve
Completion in bash: eval "$(python train.py -sc install=bash)". Flags of Hydra: --hydra-help""",
    "evaluate": """\
data.NAME=VALUE replaces an option of the checkpoint's data. All options:
python evaluate.py --cfg job. Flags of Hydra: --hydra-help""",
}
WIDTH = 118  # of a line of choices

_parser = OverridesParser.create()


def help_text(program: str) -> str:
    """The text of ``--help``: groups with their choices, and the options changed most often.

    Args:
        program: a key of :data:`USAGE`.
    """
    usage, purpose = USAGE[program]
    cfg = _composed(program, [])
    defaults = cfg.hydra.runtime.choices
    groups = {name: found for name, found in group_choices().items() if name in defaults}
    width = max(map(len, groups))
    lines = [usage, "", purpose, "", "Groups (GROUP=CHOICE; * is the default):"]
    for name, found in groups.items():
        shown = [f"{one}*" if one == defaults[name] else one for one in found]
        lines += _wrapped(f"  {name:<{width}}  ", shown)
    lines += ["", "Options changed most often (OPTION=VALUE):"]
    width = max(map(len, OPTIONS[program]))
    for name, words in OPTIONS[program].items():
        lines.append(f"  {name:<{width}}  {words}{_default(cfg, name)}")
    return "\n".join([*lines, "", MORE[program]])


def group_choices() -> dict[str, list[str]]:
    """The groups of options and their choices, without those that users do not choose."""
    return {
        group: [one for one in found if one not in INTERNAL_CHOICES]
        for group, found in _all_choices().items()
        if group not in INTERNAL_GROUPS
    }


def check_names(program: str, overrides: Sequence[str]) -> None:
    """Refuse a group, a choice or an option that does not exist.

    Options are looked up in the configuration composed from the chosen groups; for a sweep, in that
    of its first run. Options that are added (``+NAME``), removed (``~NAME``) or Hydra's own are not
    checked.

    Args:
        program: a key of :data:`USAGE`.
        overrides: as Hydra can read them.

    Raises:
        ConfigError: naming it, and the nearest name that exists.
    """
    parsed = [one for one in map(_parser.parse_override, overrides) if _is_checked(one)]
    groups = _all_choices()
    chosen = []
    for one in parsed:
        if one.key_or_group not in groups:
            continue
        values = [value for value in _values(one) if isinstance(value, str)]
        for value in values:
            _check_choice(one.key_or_group, value, groups[one.key_or_group])
        chosen += [f"{one.get_key_element()}={values[0]}"] if values else []
    options = [one for one in parsed if one.key_or_group not in groups]
    if not options:
        return
    try:
        cfg = _composed(program, chosen)
    except (HydraException, OmegaConfBaseException):
        return  # Hydra says itself what is wrong with the groups
    for one in options:
        if not _exists(cfg, one.key_or_group):
            name = one.key_or_group
            hint = _other_choices(name, groups) or nearest(name, [*_leaves(cfg), *groups])
            raise ConfigError(f"{one.input_line}: there is no option {name}{hint}")


def refuse_flags(program: str, flags: Sequence[str]) -> None:
    """Refuse options that are written with dashes, ``--max-steps 40``.

    Args:
        program: a key of :data:`USAGE`.
        flags: what Hydra's own parser does not know.

    Raises:
        ConfigError: naming the first, and the nearest option.
    """
    flag = next((one for one in flags if one.startswith("-")), None)
    if flag is None:
        return
    name = flag.lstrip("-").partition("=")[0].replace("-", "_")
    known = [*_leaves(_composed(program, [])), *_all_choices()]
    raise ConfigError(
        f"{flag}: options are written NAME=VALUE, without dashes{nearest(name, known)}"
    )


def nearest(name: str, known: Collection[str]) -> str:
    """``; did you mean ...?`` with the known name most similar to ``name``; "" if none is.

    An option of the same group is preferred, then one of the same name in another group.
    """
    group, _, last = name.rpartition(".")
    own = {one.rpartition(".")[2]: one for one in known if one.rpartition(".")[0] == group}
    usual_last = sorted(known, key=lambda one: (one.split(".")[0] in USUAL_GROUPS, one))
    ends = {one.rpartition(".")[2]: one for one in usual_last}
    for names, cutoff in ((own, 0.6), (ends, 0.85)):
        found = difflib.get_close_matches(last, list(names), n=1, cutoff=cutoff)
        if found:
            return f"; did you mean {names[found[0]]}?"
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return f"; did you mean {found[0]}?" if found and not own else ""


def _other_choices(option: str, groups: Mapping[str, Sequence[str]]) -> str:
    """A hint which choices of an option's group have it (e.g. ``method.score_threshold``)."""
    group, _, name = option.partition(".")
    having = [choice for choice in groups.get(group, ()) if name in _options_of(group, choice)]
    return f" with this choice of {group}; it exists in {', '.join(having)}" if having else ""


def _options_of(group: str, choice: str) -> set[str]:
    """The options in the file of a choice, and in those of its group that it builds on."""
    node = OmegaConf.load(CONFIG_FOLDER / group / f"{choice}.yaml")
    options = {str(key) for key in node}
    for base in OmegaConf.select(node, "defaults") or []:
        if isinstance(base, str) and base != "_self_":
            options |= _options_of(group, base)
    return options


def _check_choice(group: str, value: str, known: Collection[str]) -> None:
    if value in known or value == "null":
        return
    shown = [one for one in known if one not in INTERNAL_CHOICES]
    raise ConfigError(
        f"{group}={value}: there is no such choice{nearest(value, shown)} "
        f"({group} is one of {', '.join(shown)})"
    )


def _all_choices() -> dict[str, list[str]]:
    folders = sorted(folder for folder in CONFIG_FOLDER.iterdir() if folder.is_dir())
    return {one.name: sorted(file.stem for file in one.glob("*.yaml")) for one in folders}


def _is_checked(one: Override) -> bool:
    key = one.key_or_group
    return not (one.is_add() or one.is_force_add() or one.is_delete() or key.startswith("hydra"))


def _values(one: Override) -> list[Any]:
    return list(one.sweep_iterator()) if one.is_sweep_override() else [one.value()]


def _composed(program: str, overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return compose(program, overrides=list(overrides), return_hydra_config=True)


def _exists(cfg: DictConfig, key: str) -> bool:
    node: Any = cfg
    for part in key.split("."):
        if not isinstance(node, DictConfig) or node._is_none() or node._is_interpolation():
            # An option that is null, or refers to another group, may have options below it.
            return isinstance(node, DictConfig) or node is None or node._is_none()
        if part not in set(node):  # `in node` overlooks options that must be given
            return False
        node = node._get_node(part)
    return True


def _leaves(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in cfg:
        name = prefix + str(key)
        if name == "hydra" or str(key).startswith("_"):
            continue
        node = cfg._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation():
            yield from _leaves(node, f"{name}.")
        else:
            yield name


def _default(cfg: DictConfig, name: str) -> str:
    if OmegaConf.is_missing(cfg, name):
        return " (required)"
    try:
        value = OmegaConf.select(cfg, name)
    except OmegaConfBaseException:
        return ""
    return f" [{'null' if value is None else value}]"


def _wrapped(head: str, words: Sequence[str]) -> list[str]:
    lines, line = [], head
    for word in words:
        if len(line) + len(word) > WIDTH:
            lines.append(line.rstrip())
            line = " " * len(head)
        line += f"{word} "
    return [*lines, line.rstrip()]
