"""What sections of options are made of."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
# Larger numbers than these are mistakes, which would end in a message about something else.
MOST = 10**9
PositiveInt = Annotated[int, Field(ge=1, le=MOST)]
Pixels = Annotated[int, Field(ge=1, le=2**14)]  # sides of crops and patches
Width = Annotated[int, Field(ge=1, le=2**20)]  # features, and their layers
Range = tuple[float, float]


class Section(BaseModel):
    """A group of options that never change; an option it does not know is an error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )


def option(default: Any, meaning: str, **checks: Any) -> Any:
    """An option with its meaning beside it. A number with a lower bound has an upper one, too."""
    if {"ge", "gt"} & checks.keys() and not {"le", "lt"} & checks.keys():
        checks["le"] = MOST
    return Field(default, description=meaning, **checks)
