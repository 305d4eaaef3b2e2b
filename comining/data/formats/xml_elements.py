"""Untrusted XML files, as plain elements with their line numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from comining.data.record_values import short
from comining.errors import DataError


@dataclass(slots=True)
class XmlElement:
    """An element with its attributes, the text before its first child, and its children."""

    file: Path
    line: int
    tag: str
    attributes: dict[str, str]
    text: str = ""
    children: list[XmlElement] = field(default_factory=list)

    @property
    def where(self) -> str:
        """The words that name the element in an error."""
        return f"{self.file}: line {self.line}: {self.tag}"

    def all(self, tag: str) -> Iterator[XmlElement]:
        """The children with a tag."""
        return (child for child in self.children if child.tag == tag)

    def find(self, *tags: str) -> XmlElement | None:
        """The first child with the first tag, the first child in it with the next, and so on."""
        found: XmlElement | None = self
        for tag in tags:
            found = next(found.all(tag), None) if found is not None else None
        return found

    def value(self, tag: str) -> str:
        """The text of a child.

        Raises:
            DataError: there is no such child.
        """
        child = self.find(tag)
        if child is None:
            raise DataError(f"{self.where}: {tag} is missing")
        return child.text.strip()

    def attribute(self, name: str) -> str:
        """The value of an attribute.

        Raises:
            DataError: there is no such attribute.
        """
        if name not in self.attributes:
            raise DataError(f"{self.where}: {name} is missing")
        return self.attributes[name]


def as_number(where: str, name: str, text: str) -> float:
    """Parse a number; it may be infinite or NaN.

    Args:
        where: the words that name the element in an error.
    """
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{where}: {name} must be a number, got {short(text)}") from None


def as_side(where: str, name: str, text: str) -> int:
    """Parse a width or height, px: an integer, also written as 640.0."""
    number = as_number(where, name, text)
    if not number.is_integer() or not 0 <= number < 2**31:
        raise DataError(f"{where}: {name} must be a whole number of pixels, got {short(text)}")
    return int(number)


def read_xml(file: Path) -> XmlElement:
    """Read an XML file.

    Entities are refused, not expanded: a few nested ones turn a short file into gigabytes, and
    external ones read other files of the machine.

    Raises:
        DataError: naming the file, and the line if there is one.
    """
    parser = expat.ParserCreate()
    stack: list[XmlElement] = []
    roots: list[XmlElement] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = XmlElement(file, parser.CurrentLineNumber, tag, attributes)
        (stack[-1].children if stack else roots).append(element)
        stack.append(element)

    def end(tag: str) -> None:
        stack.pop()

    def text(data: str) -> None:
        if stack and not stack[-1].children:
            stack[-1].text += data

    def refuse(*declaration: object) -> None:
        line = parser.CurrentLineNumber
        raise DataError(f"{file}: line {line}: declares entities, which are not expanded")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.EntityDeclHandler = refuse
    parser.buffer_text = True
    try:
        parser.Parse(file.read_bytes(), True)
    except FileNotFoundError:
        raise DataError(f"{file}: no such annotation file") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    except expat.ExpatError as error:
        raise DataError(f"{file}: not an XML file ({error})") from None
    except (ValueError, LookupError) as error:  # an encoding that Python does not have
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: not an XML file ({error})") from None
    return roots[0]
