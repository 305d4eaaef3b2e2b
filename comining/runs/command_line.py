"""The command line: paths as the shell passes them, and one-line errors from Hydra's parser.

Hydra reads ``NAME=VALUE`` by its own grammar, in which spaces, brackets, commas, ``=``, ``#`` and
non-ASCII letters have a meaning or are refused. Options that are paths are therefore rewritten,
before Hydra sees them, by these rules:

1. A value that names a file or folder that exists is that path.
2. Otherwise a value that Hydra reads as one text, or as null, is unchanged: quotes, escapes and
   ``${...}`` have their usual meaning.
3. In a sweep (``-m``), commas separate values, each of which is read by these rules; so they do in
   brackets, where an option takes a list of files.
4. Anything else is taken literally as a path. A leading ``~`` is expanded.

Nothing else is rewritten, except ``data.NAME=VALUE`` for a program that takes its data options from
a checkpoint.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import shlex
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString, Sweep
from hydra.errors import HydraException

from comining.errors import ConfigError
from comining.runs.help_text import check_names, help_text, refuse_flags
from comining.runs.pipes import stop_on_closed_pipes
from comining.runs.ranks import started_by_rank_zero

# Flags of one letter with their values attached: -cjob.
ATTACHED = re.compile(r"-c(job|hydra|all)|-i(all|config|defaults|defaults-tree|plugins|searchpath)")
# Relative to the current directory.
PATHS = frozenset(
    {
        "data.root",
        "sparsity.path",
        "method.teacher",
        "weights",
        "resume",
        "ckpt",
        "checkpoint",
        "images",
        "logger.folder",
        "logger.directory",
        "hydra.run.dir",
        "hydra.sweep.dir",
    }
)
# Relative to data.root.
BELOW_ROOT = frozenset(
    f"data.{split}_{part}"
    for split in ("train", "val", "test")
    for part in ("annotations", "images")
)
# Values of these options that are not paths.
WORDS = {"resume": "auto", "weights": "coco"}
# Where evaluate.py keeps what replaces the data options of a checkpoint.
STORED = "data_override"

OPTION = re.compile(r"(?P<key>\+{0,2}(?P<name>[^=+~]*))=(?P<text>.*)", re.DOTALL)
# The values of a list: quoted as Hydra quotes, or whatever stands between two commas.
VALUES = re.compile(r"""\s*(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\s*(?=,|$)|[^,]*""", re.DOTALL)

LIST = re.compile(r"\[[^\[\]]*\]")

_parser = OverridesParser.create()


def command_line(
    main: Callable[..., Any] | None = None, *, data_of_checkpoint: bool = False
) -> Callable[..., Any]:
    """Rewrite the command line of a Hydra program so that Hydra can read it.

    An argument that cannot be read ends the program with one line and exit code 2. Closed standard
    output ends it, too, see :func:`stop_on_closed_pipes`.

    Args:
        main: decorated by ``hydra.main``.
        data_of_checkpoint: ``data.NAME=VALUE`` without a choice ``data=...`` replaces an option of
            the checkpoint.
    """
    if main is None:
        return functools.partial(command_line, data_of_checkpoint=data_of_checkpoint)
    program: Callable[..., Any] = main

    @functools.wraps(program)
    def run(*composed: Any) -> Any:
        if composed:  # with a configuration in place of a command line
            return program(*composed)
        name = Path(inspect.unwrap(program).__code__.co_filename).stem
        parser = get_args_parser()
        try:
            # argparse would take -max_steps=40 for the flag -m.
            refuse_flags(name, [one for one in sys.argv[1:] if _is_no_flag(one, parser)])
            given, unknown = parser.parse_known_args(sys.argv[1:])
            if given.help:
                print(help_text(name))
                return None
            refuse_flags(name, unknown)
            sys.argv[1:] = readable(sys.argv[1:], data_of_checkpoint)
            elsewhere = given.config_name or given.config_path or given.config_dir
            if not (given.shell_completion or elsewhere):
                check_names(name, get_args_parser().parse_args(sys.argv[1:]).overrides)
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        with stop_on_closed_pipes():
            return program()

    return run


def _is_no_flag(word: str, parser: ArgumentParser) -> bool:
    """Whether a word with one dash is no flag of Hydra, like ``-max_steps=40`` and ``-method``."""
    name = word.partition("=")[0]
    if not re.match(r"-[A-Za-z_~+]{2}", name) or ATTACHED.fullmatch(word):
        return False
    return name not in [one for action in parser._actions for one in action.option_strings]


def readable(arguments: Sequence[str], data_of_checkpoint: bool = False) -> list[str]:
    """Arguments of a program, rewritten so that Hydra can read them.

    Raises:
        ConfigError: an argument cannot be read; names it, and what to write instead.
    """
    given = get_args_parser().parse_args(list(arguments))
    if given.shell_completion:
        return list(arguments)
    sweep = bool(given.multirun) or any(
        one.replace("'", "").upper() == "HYDRA.MODE=MULTIRUN" for one in given.overrides
    )
    rewritten = {}
    roots = [Path(), *_roots(given.overrides)]
    before = ""
    for one in given.overrides:
        rewritten[one] = _readable(one, before, sweep, roots)
        before = one
    if data_of_checkpoint and not any(re.match(r"\+{0,2}data[=@]", o) for o in given.overrides):
        rewritten = {
            one: re.sub(rf"^\+{{0,2}}(data|{STORED})\.", f"++{STORED}.", new)
            for one, new in rewritten.items()
        }
    return [rewritten.get(one, one) for one in arguments]


def quoted(text: str, quote: Quote = Quote.single) -> str:
    """A text as Hydra's grammar quotes it. (``${...}`` in it stays a reference.)"""
    return QuotedString(text, quote).with_quotes()


def absolute(override: str, folder: Path) -> str:
    """An override that Hydra can read, with a relative path resolved against ``folder``."""
    option = OPTION.fullmatch(override)
    if option is None or option["name"] not in PATHS:
        return override
    path = text_of(override)
    if not path or path == WORDS.get(option["name"]):
        return override
    return f"{option['key']}={quoted(os.path.join(folder, path))}"


def text_of(override: str) -> str | None:
    """The value of an override, if it is a text."""
    value = _parser.parse_override(override).value()
    return value if isinstance(value, str) else None


# -- one argument ------------------------------------------------------------------------


def _roots(overrides: Collection[str]) -> list[Path]:
    """The values of ``data.root``, as base folders of other paths."""
    options = filter(None, map(OPTION.fullmatch, overrides))
    return [
        Path(option["text"].strip("'\"")).expanduser()
        for option in options
        if _name(option) == "data.root"
    ]


def _name(option: re.Match[str]) -> str:
    """The name of an option; the same for one that replaces an option of a checkpoint."""
    return re.sub(rf"^{STORED}\.", "data.", option["name"])


def _readable(override: str, before: str, sweep: bool, roots: Sequence[Path]) -> str:
    option = OPTION.fullmatch(override)
    if option is None or _name(option) not in PATHS | BELOW_ROOT:
        _check(override, before, sweep)
        return override
    bases = roots if _name(option) in BELOW_ROOT else roots[:1]
    # Hydra's own paths are the same for all runs of a sweep.
    listed = sweep and not option["name"].startswith("hydra.")
    try:
        if _name(option) in BELOW_ROOT and LIST.fullmatch(option["text"]):
            text = _list(option["text"], bases)
        else:
            text = _path(option["text"], bases, listed)
    except ConfigError as error:
        raise ConfigError(f"{override}: {error}") from None
    new = f"{option['key']}={text}"
    _check(new, before, sweep)
    return new


def _list(text: str, bases: Sequence[Path]) -> str:
    """A list of paths in Hydra's syntax, unless a file has the whole text as its name."""
    if any(_exists(base, text) for base in bases):
        return _literal(text, exists=True)
    values = [value.strip() for value in VALUES.findall(text[1:-1]) if value.strip()]
    return f"[{','.join(_path(value, bases, listed=False) for value in values)}]"


def _path(text: str, bases: Sequence[Path], listed: bool) -> str:
    """The value of a path option in Hydra's syntax."""
    reading = _reading(text)
    blank = text.isspace() and any(_exists(base, text) for base in bases)
    if reading in ("", None) and not blank:  # a folder may be called " ", which Hydra strips
        return text
    if reading != text and any(_exists(base, text) for base in bases):
        return _literal(text, exists=True)
    if isinstance(reading, str):
        if "${" in text and any(_exists(base, text) for base in bases):
            return _literal(text, exists=True)
        return text
    if listed and isinstance(reading, Sweep) and not getattr(reading, "simple_form", False):
        return text  # choice(a,b)
    if listed and "," in text:
        values = [value for value in VALUES.findall(text) if value]
        if len(values) > 1:
            return ",".join(_path(value, bases, listed=False) for value in values)
    if started_by_rank_zero() and re.fullmatch('".*"', text, re.DOTALL):
        text = text[1:-1]  # by Lightning, which escapes nothing inside
    return _literal(text, exists=False)


def _literal(text: str, exists: bool) -> str:
    if "${" in text and (exists or "}" not in text):
        raise ConfigError(
            "a path cannot contain ${, because ${...} is a reference to another option; rename "
            "it, or use a link to it"
        )
    return quoted(os.path.expanduser(text))


def _reading(text: str) -> Any:
    """The value as Hydra parses it; :class:`HydraException` if it cannot."""
    try:
        return _parser.parse_override(f"x={text}").value()
    except HydraException:
        return HydraException


def _exists(base: Path, text: str) -> bool:
    try:
        return os.path.lexists(base / os.path.expanduser(text))
    except ValueError:  # a null character
        return False


def _check(override: str, before: str, sweep: bool) -> None:
    """Refuse, in one line, what Hydra would refuse in several lines or with a traceback.

    Raises:
        ConfigError: with the argument that would work.
    """
    program = f"python {Path(sys.argv[0]).name}"
    name, equals, text = override.partition("=")
    as_text = shlex.quote(f"{name}={quoted(text, Quote.double)}")
    try:
        parsed = _parser.parse_override(override)
    except HydraException as error:
        reason = str(error).splitlines()[0]
        if equals and re.fullmatch(r"\+{0,2}[\w./@-]+", name):
            how = f"put text in quotes: {program} {as_text}"
        elif not equals and "=" in before:
            how = f"put a value with spaces in quotes: {program} {_joined(before, override)}"
        else:
            how = f"options are NAME=VALUE: {program} seed=0"
        raise ConfigError(f"{override}: cannot be read ({reason}); {how}") from None
    if parsed.is_sweep_override() and not sweep:
        raise ConfigError(
            f"{override}: several values need a sweep: {program} -m {shlex.quote(override)}; "
            f"put a single text in quotes: {program} {as_text}"
        )


def _joined(before: str, override: str) -> str:
    """Two arguments that the shell has split at a space, joined again."""
    name, _, text = before.partition("=")
    whole = f"{text} {override}"
    if isinstance(_reading(whole), str) or name.lstrip("+") in PATHS | BELOW_ROOT:
        return shlex.quote(f"{name}={whole}")
    return shlex.quote(f"{name}={quoted(whole, Quote.double)}")
