"""``result.json``: one typed record of a run, however it ended."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from comining.errors import DataError
from comining.runs.files import write_json

# Where the earlier content of a run directory is moved to; no report counts what is in there.
REPLACED = "replaced"

Status = Literal["finished", "diverged", "interrupted", "failed"]
Figures = dict[str, float | None]
INT64 = 2**63
Int64 = Annotated[int, Field(ge=-INT64, lt=INT64)]  # what a table holds


class RunResult(BaseModel):
    """What was run, how it ended and what it measured; the only reader and writer of the file.

    A run that did not finish has no ``metrics``; ``error`` says why, and ``step`` how far it got.
    Fields that a later version has added are kept when a record is copied.
    """

    model_config = ConfigDict(extra="allow", validate_assignment=True)

    status: Status
    # What was run: the choice of every group of the configuration.
    method: str
    detector: str
    sparsity: str
    backbone: str
    view: str
    optimizer: str
    dataset: str
    experiment: str | None = None
    table: str | None = None
    paste: int = 0  # data.paste: annotated objects pasted into a training image, at most
    seed: Int64 | None  # None only if the option was not a valid seed
    max_steps: Int64 | None  # optimizer steps; None only if the option was not a number
    method_options: dict[str, Any] = Field(default_factory=dict)
    # The options of the sparse set that differ from its choice; none in records from before this.
    sparsity_options: dict[str, Any] = Field(default_factory=dict)
    # Hashes of the options: runs that share `variant` are seeds of one another, runs that share
    # `recipe` differ in no more than method, view, sparsity and threshold.
    variant: str = ""
    recipe: str = ""
    # The options behind `recipe`, by their full names; none in records from before this field.
    recipe_options: dict[str, Any] = Field(default_factory=dict)

    # Where `weights` was given: `from`, and of how many of the `classes` the head was kept.
    initial_weights: dict[str, Any] | None = None

    # Its metrics, on a scale of 0-100; None where nothing of that kind is annotated.
    steps: int | None = None  # optimizer steps done when it was evaluated
    metrics: Figures | None = None  # COCO's 12 numbers on the validation split
    class_ap: Figures | None = None
    # {multiple: recall} of the annotated objects of the validation split, among so many detections
    # for each of them, see comining.evaluation.recall_among.recall_among_best
    recall_among: Figures = Field(default_factory=dict)
    ap_is_lower_bound: bool = False  # objects may be missing in the annotations of the split
    test: Figures | None = None  # the same on the test split, where there is one
    test_class_ap: Figures | None = None
    test_ap_is_lower_bound: bool = False
    mining: Figures = Field(default_factory=dict)  # over the last quarter of training
    mining_classes: dict[str, Figures] = Field(default_factory=dict)
    # How much of the objects is annotated: `estimated` and `true` {class: share}, `interval`
    # {class: [low, high]}; true is None where nobody knows, the whole where nothing was estimated.
    rate: dict[str, Any] | None = None
    history: list[dict[str, float | None]] = Field(default_factory=list)  # a row per validation

    # Why it did not finish.
    error: str | None = None
    step: int | None = None  # optimizer steps done when it stopped
    divergence: dict[str, Any] | None = None  # what was known at the step that diverged
    trace: str | None = None  # of a failed run

    data: dict[str, dict[str, Any]] = Field(default_factory=dict)  # fingerprints and counts
    versions: dict[str, str] = Field(default_factory=dict)
    hardware: str = ""
    wall_time_s: float = 0.0

    @field_validator(
        "method_options", "sparsity_options", "recipe_options", "divergence", mode="before"
    )
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return plain(value)

    @field_validator("history")
    @classmethod
    def _have_steps(cls, rows: list[dict[str, float | None]]) -> list[dict[str, float | None]]:
        if any(row.get("step") is None for row in rows):
            raise ValueError("a validation without its step")
        return rows

    @property
    def ap(self) -> float | None:
        """AP on the validation split; None where the run did not finish or nothing is annotated."""
        return None if self.metrics is None else self.metrics.get("AP")

    @property
    def test_ap(self) -> float | None:
        """AP on the test split; None where there is none."""
        return None if self.test is None else self.test.get("AP")

    @property
    def score_threshold(self) -> float | None:
        """Tau of a method that has one."""
        value = self.method_options.get("score_threshold")
        # A run that failed may have failed because of it.
        return float(value) if isinstance(value, int | float) else None

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read a record.

        Raises:
            DataError: the file is missing, cannot be read, or is not a result; names the file and
                the field.
        """
        try:
            text = file.read_text(encoding="utf-8")
            return cls.model_validate(json.loads(text, parse_constant=_refuse))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "top level"
            raise DataError(f"{file}: not a result of comining ({field}: {first['msg']})") from None
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{file}: not a result of comining ({error})") from error

    def write(self, file: Path) -> None:
        """Write the record whole or not at all.

        Raises:
            ValueError: a number is NaN or infinite.
        """
        write_json(file, self.model_dump(mode="python"))


def _refuse(name: str) -> None:
    """For ``json.loads``: NaN and infinity are no JSON, and no run writes them."""
    raise ValueError(f"{name} is not a number of JSON")


def find_files(folder: Path, name: str) -> list[Path]:
    """All files of a name in a folder and below, except those of replaced runs."""
    return sorted(
        file for file in folder.rglob(name) if REPLACED not in file.relative_to(folder).parts
    )


def plain(value: Any) -> Any:
    """A value as plain JSON: numbers that are not finite and unknown types become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else None
