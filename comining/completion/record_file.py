"""JSON files of our own that a person may have edited, with errors that name the record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AllowInfNan, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from comining.data.record_values import short
from comining.errors import DataError

Number = Annotated[float, AllowInfNan(False)]
Box = tuple[Number, Number, Number, Number]
Share = Annotated[Number, Field(ge=0, le=1)]
Id = Annotated[int, Field(ge=-(2**63), lt=2**63)]

Content = TypeVar("Content")


class Record(BaseModel):
    """Base class of the records; fields that a later version has added are kept."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


def read_records(file: Path, content: TypeAdapter[Content], name: str = "") -> Content:
    """Read and validate a JSON file.

    Args:
        content: the type of the content.
        name: of its top level in an error, if that is a list.

    Raises:
        DataError: it cannot be read, is not a JSON file, or holds something else; names the file
            and the first field that is wrong.
    """
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    try:
        return content.validate_json(data.removeprefix(b"\xef\xbb\xbf"), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise DataError(f"{file}: {_said(first, name)}") from None


def _said(problem: Any, name: str) -> str:
    """The problem in one line."""
    if problem["type"] == "json_invalid":
        return f"not a JSON file ({problem['ctx']['error']})"
    place = name
    for part in problem["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    if problem["type"] == "missing":
        outer, _, key = place.rpartition(".")
        if place.endswith("]"):
            return f"{place} is missing"
        return f"{outer}: '{key}' is missing" if outer else f"'{key}' is missing"
    place = place or "top level"
    if problem["type"] == "value_error":  # one of ours, which says it all
        return f"{place}: {problem['ctx']['error']}"
    found = short(problem["input"])
    message = str(problem["msg"])
    if message.startswith("Input should be "):
        return f"{place} must be {message.removeprefix('Input should be ')}, got {found}"
    return f"{place}: {message[:1].lower()}{message[1:]}, got {found}"
