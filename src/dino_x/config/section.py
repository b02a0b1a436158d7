"""What sections of options are made of."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
Range = tuple[float, float]


class Section(BaseModel):
    """A group of options that never change; an option it does not know is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, protected_namespaces=()
    )


def option(default: Any, meaning: str, **checks: Any) -> Any:
    """An option with its meaning beside it."""
    return Field(default, description=meaning, **checks)
