"""Types of options with a range, for the signatures of constructors.

A signature is the schema of a group of options: :mod:`comining.config` checks every option against
the annotation of its parameter before anything is built.
"""

from typing import Annotated

from pydantic import Field

NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# Probabilities, IoUs, shares and factors.
Fraction = Annotated[float, Field(ge=0, le=1)]
