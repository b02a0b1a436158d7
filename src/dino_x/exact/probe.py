"""What may look at the rows that a step makes anyway, without a change to any of them."""

from typing import Any, Protocol

from torch import Tensor

from dino_x.exact.processes import Processes


class StepProbe(Protocol):
    """Gathers rows while the step makes them."""

    def teacher(
        self, micro: Any, cls_RF: Tensor, patches_RNF: Tensor, bottlenecks_RD: Tensor
    ) -> None:
        """Pass 1: the teacher's tokens of a micro-batch, and its CLS bottlenecks."""

    def student(self, micro: Any, cls_RF: Tensor) -> None:
        """Pass 3: the student's CLS tokens of the global crops."""

    def finish(self, dino_bias_K: Tensor, temperature: float, processes: Processes) -> Any:
        """After pass 3: what was gathered, of all processes."""


class NoProbe:
    """Looks at nothing."""

    def teacher(
        self, micro: Any, cls_RF: Tensor, patches_RNF: Tensor, bottlenecks_RD: Tensor
    ) -> None:
        """Keep nothing of the teacher's tokens."""

    def student(self, micro: Any, cls_RF: Tensor) -> None:
        """Keep nothing of the student's tokens."""

    def finish(self, dino_bias_K: Tensor, temperature: float, processes: Processes) -> None:
        """Nothing was gathered."""


NO_PROBE = NoProbe()
