"""Names of the folders that a sweep makes for its runs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

LONGEST = 180  # characters, of the 255 bytes that file systems take: the name is added to
LONGEST_VALUE = 40

# A value that stands in a name as it is: every - of it comes before every _, so that the next - is
# known to end the name of the next option.
PLAIN = re.compile(r"[A-Za-z0-9.-]*[A-Za-z0-9._]*", re.ASCII)


class _Item(NamedTuple):
    key: str
    value: str
    exact: bool  # whether the option and its value can be told from key and value


def cell_name(overrides: Sequence[str], excluded: Collection[str] = ()) -> str:
    """The name of a run from its options, e.g. ``method.score_threshold-0.4_seed-0``.

    It has only ASCII letters, digits and ``._+-``. If the options cannot be recovered from such a
    name (a path, a long list), it ends in a hash of them, so that no two runs share a name.

    Args:
        overrides: the options that the command line and the sweep set for this run, ``NAME=VALUE``.
        excluded: names of options that do not matter.
    """
    parser = OverridesParser.create()
    kept, items = [], []
    for override in overrides:
        parsed = parser.parse_override(override)
        if parsed.key_or_group in excluded:
            continue
        kept.append(override)
        key = re.sub(r"[^\w.]", "_", parsed.get_key_element().lstrip("+"), flags=re.ASCII)
        value = "" if parsed.is_delete() else parsed.get_value_element_as_str()
        same = not parsed.is_delete() and key == parsed.get_key_element().lstrip("+")
        items.append(_item(key, parsed.value(), value, same))
    items.sort()
    exact = all(item.exact for item in items)
    name = "_".join(f"{item.key}-{item.value}" for item in items)
    if len(name) > LONGEST:
        exact = False
        name = _shortened(items)
    if exact:
        return name or "default"
    digest = hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest()[:8]
    return f"{name}-{digest}"


def _item(key: str, value: Any, text: str, same: bool) -> _Item:
    if isinstance(value, bool):
        return _Item(key, text.lower(), same)
    if value is None or isinstance(value, int | float):
        return _Item(key, text, same)
    if isinstance(value, list) and value and all(_is_word(part) for part in value):
        return _Item(key, "+".join(value), same)
    plain = isinstance(value, str) and text == value and PLAIN.fullmatch(value)
    if plain and len(value) <= LONGEST_VALUE:
        return _Item(key, value, same)
    # The last part of a path is the most telling.
    text = value.rstrip("/").rpartition("/")[2] if isinstance(value, str) else text
    word = re.sub(r"[^\w.+-]+", "_", text, flags=re.ASCII).strip("_")
    return _Item(key, word[-LONGEST_VALUE:], exact=False)


def _is_word(part: Any) -> bool:
    return isinstance(part, str) and re.fullmatch("[A-Za-z][A-Za-z0-9]*", part) is not None


def _shortened(items: Sequence[_Item]) -> str:
    """All values, with the option names cut to the available length."""
    last = [f"{item.key.rpartition('.')[2]}-{item.value}" for item in items]
    for room in range(LONGEST, 0, -1):  # the longest are cut first
        name = "_".join(item[-room:] for item in last)
        if len(name) <= LONGEST:
            return name
    return name[:LONGEST]


OmegaConf.register_new_resolver("cell_name", cell_name, replace=True)
