"""An account of every tensor when weights are loaded, so that nothing goes wrong silently."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dino_x.errors import UserError

ENOUGH = 0.99  # share of the tensors that must be loaded, unless --allow-partial
NAMED = 3  # tensors of a kind that are named in a line


@dataclass(frozen=True)
class Accounting:
    """Every tensor of the network and of the file, by what became of it.

    Attributes:
        total: tensors of the network.
        reshaped: loaded, but not as they were: name in the network, and how.
        missing: of the network, not in the file; they keep new weights.
        wrong: of the network, in the file with another shape; they keep new weights. Name, and
            both shapes.
        unused: of the file, without a place in the network. Name, and why ("" = not known).
        assumed: what the file does not say, and what was taken for it, in words.
    """

    total: int
    reshaped: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    wrong: Mapping[str, str] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()

    @property
    def loaded(self) -> int:
        """Tensors of the network that come from the file."""
        return self.total - len(self.missing) - len(self.wrong)

    @property
    def whole(self) -> bool:
        """Whether every tensor of the network was loaded."""
        return self.loaded == self.total

    def line(self) -> str:
        """``211 of 211 tensors loaded``, then what is reshaped, missing, wrong, unused, assumed."""
        parts = [f"{self.loaded} of {self.total} tensors loaded"]
        if self.reshaped:
            parts.append(f"reshaped: {named(self.reshaped)}")
        parts += self.problems()
        if self.assumed:
            parts.append(f"assumed, as the file does not say: {', '.join(self.assumed)}")
        return "; ".join(parts)

    def problems(self) -> list[str]:
        """A clause for each kind of tensor that was not loaded or not used."""
        parts = []
        if self.missing:
            parts.append(f"missing: {named(dict.fromkeys(self.missing, ''))}")
        if self.wrong:
            parts.append(f"of another shape: {named(self.wrong)}")
        if self.unused:
            parts.append(f"in the file but not used: {named(self.unused)}")
        return parts

    def check(self, name: str, allow_partial: bool) -> None:
        """Refuse a file of which too little could be loaded.

        Raises: UserError below 99%, unless ``allow_partial`` and at least one tensor was loaded.
        """
        if self.loaded >= ENOUGH * self.total:
            return
        if allow_partial and self.loaded:
            return
        way_out = "" if not self.loaded else "; --allow-partial starts with the rest new"
        raise UserError(
            f"only {self.loaded} of {self.total} tensors of model '{name}' could be loaded;"
            f" {'; '.join(self.problems())}{way_out}"
        )


def named(tensors: Mapping[str, str]) -> str:
    """The first few names, each with its remark, and how many more there are."""
    shown = [f"{name} ({remark})" if remark else name for name, remark in tensors.items()]
    more = f" and {len(shown) - NAMED} more" if len(shown) > NAMED else ""
    return ", ".join(shown[:NAMED]) + more
