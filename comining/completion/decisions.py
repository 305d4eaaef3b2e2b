"""``decisions.json``: a person's decisions on proposals. docs/completion.md describes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from comining.completion.proposal_folder import ProposalFolder
from comining.completion.proposals import digest
from comining.completion.record_file import Box, Id, Record, read_records
from comining.data.annotation_builder import fit_box
from comining.errors import DataError

Pair = tuple[int, int]  # ids of an image and a category


class Decision(Record):
    """The decision on one proposal: an object, no object, or an object of another class.

    An object may have a corrected box.
    """

    id: int  # of the proposal
    decision: Literal["accept", "reject", "class"]
    category_id: Id | None = None  # the class that it is instead
    bbox: Box | None = None  # xywh px, in place of the proposal's

    @model_validator(mode="after")
    def _has_its_class(self) -> Self:
        if self.decision == "class" and self.category_id is None:
            raise ValueError("the decision 'class' needs a category_id")
        if self.decision != "class" and self.category_id is not None:
            raise ValueError(f"the decision '{self.decision}' has no category_id")
        if self.decision == "reject" and self.bbox is not None:
            raise ValueError("the decision 'reject' has no bbox")
        return self


class LookedThrough(Record):
    """A class whose objects in an image are all annotated, once the decisions are applied."""

    image_id: Id
    category_id: Id


class DecisionFile(Record):
    """The content of the file."""

    version: Literal[1]
    proposals: str  # their hash, see comining.completion.proposals.digest
    decisions: list[Decision]
    looked_through: list[LookedThrough] = Field(default_factory=list)


DECISIONS = TypeAdapter(DecisionFile)


@dataclass
class Decisions:
    """The decisions of one file or several."""

    of_proposal: dict[int, Decision] = field(default_factory=dict)  # by its id
    looked_through: set[Pair] = field(default_factory=set)

    @classmethod
    def read(cls, files: Sequence[Path], folder: ProposalFolder) -> Self:
        """Read decisions on the proposals of a folder.

        Repeating a decision has no effect.

        Raises:
            DataError: naming the file and the record: it is about other proposals, names something
                that does not exist, or contradicts an earlier record.
        """
        read = cls()
        wanted = digest(folder.proposals)
        image_of = {proposal.id: proposal.image_id for proposal in folder.proposals}
        ids, sizes = folder.annotations.image_ids.tolist(), folder.annotations.sizes.tolist()
        images = dict(zip(ids, sizes, strict=True))
        categories = set(folder.annotations.categories.ids)
        said_in: dict[int, str] = {}  # where a proposal was decided
        for file in files:
            content = read_records(file, DECISIONS)
            if content.proposals != wanted:
                raise DataError(
                    f"{file}: these are decisions on other proposals than those of {folder.file}"
                )
            for position, decision in enumerate(content.decisions):
                where = f"{file}: decisions[{position}]"
                if decision.id not in image_of:
                    raise DataError(
                        f"{where}: id {decision.id} is not among the proposals of {folder.file}"
                    )
                category = decision.category_id
                if category is not None and category not in categories:
                    raise DataError(
                        f"{where}: category_id {category} is not among the categories of "
                        f"{folder.annotations.path}"
                    )
                if decision.bbox is not None:
                    height, width = images[image_of[decision.id]]
                    problem, _ = fit_box(decision.bbox, width, height)
                    if problem:
                        raise DataError(
                            f"{where}: bbox {decision.bbox} in image {image_of[decision.id]} of "
                            f"{width}x{height} px {problem}"
                        )
                earlier = read.of_proposal.setdefault(decision.id, decision)
                other = None
                if (earlier.decision, earlier.category_id) != (decision.decision, category):
                    other = "decision"
                elif earlier.bbox is None:  # a corrected box completes what was said before
                    read.of_proposal[decision.id] = decision
                    said_in[decision.id] = where
                elif decision.bbox not in (None, earlier.bbox):
                    other = "box"
                if other is not None:
                    raise DataError(
                        f"{where}: proposal {decision.id} has another {other} in "
                        f"{said_in[decision.id]}"
                    )
                said_in.setdefault(decision.id, where)
            for position, pair in enumerate(content.looked_through):
                where = f"{file}: looked_through[{position}]"
                if pair.image_id not in images:
                    raise DataError(
                        f"{where}: image_id {pair.image_id} is not among the images of "
                        f"{folder.annotations.path}"
                    )
                if pair.category_id not in categories:
                    raise DataError(
                        f"{where}: category_id {pair.category_id} is not among the categories of "
                        f"{folder.annotations.path}"
                    )
                read.looked_through.add((pair.image_id, pair.category_id))
        return read
