"""Student and teacher as the step uses them: what they make of a micro-batch.

b: images of a micro-batch, V: global views, L: local crops an image, N: patches, F: features of the
backbone, m: masked patches.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from dino_x.exact.batch import GLOBAL_VIEWS, Placed

Patches = Literal["none", "masked", "all"]


class DinoNetwork(nn.Module):
    """A backbone with a head for CLS tokens (DINO) and one for patch tokens (iBOT).

    Args:
        backbone: called as ``backbone(crops, masks)``; returns CLS tokens [R, F] and patch tokens
            [R, N, F]. ``masks`` is bool [R, N], or None where nothing is hidden.
        dino_head, ibot_head: tokens to bottlenecks of norm 1, with a method ``prototypes()``;
            ``Head`` is one. The two may be the same.
    """

    def __init__(self, backbone: nn.Module, dino_head: nn.Module, ibot_head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.dino_head = dino_head
        self.ibot_head = ibot_head

    def forward(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        """The backbone's CLS and patch tokens."""
        return self.backbone(*arguments)


class TokenNetworks(Protocol):
    """What the step asks of a student and a teacher.

    Attributes:
        student, teacher: networks with ``dino_head`` and ``ibot_head``.
    """

    @property
    def student(self) -> Any:
        """The network that is trained."""

    @property
    def teacher(self) -> Any:
        """The network that makes targets."""

    def begin(self) -> None:
        """A step begins."""

    def teacher_tokens(self, micro: Any) -> tuple[Tensor, Tensor]:
        """The teacher's CLS [V * b, F] and patch tokens [V * b, N, F] of unmasked global crops."""

    def student_tokens(self, micro: Any, patches: Patches) -> tuple[Tensor, Tensor]:
        """The student's tokens of masked global crops, the same in each pass of a step.

        Returns: CLS tokens [V * b, F], and of the patch tokens those that are asked for: all
            [V * b, N, F], or [m, F], or whatever there is if none are.
        """

    def student_local_tokens(self, micro: Any) -> Tensor | None:
        """The student's CLS tokens of local crops [L * b, F]; None if there are none."""


class Networks:
    """A student and a teacher of any make, over micro-batches of tensors.

    Dropout and the like are replayed: the student's second forward of a micro-batch draws what the
    first one drew. A layer that mixes images, such as batch normalisation, is exact for no
    micro-batch: use layer normalisation.

    Args:
        student: a ``DinoNetwork``, or anything with its attributes.
        teacher: the same; nothing of it is trained.
        hide_patches: whether masked patches are hidden from the student. False is DINOv3's
            distillation: the iBOT term then compares what both see at the places of the masks.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, *, hide_patches: bool = True
    ) -> None:
        self.student: Any = student
        self.teacher: Any = teacher
        self.hide_patches = hide_patches
        self._drawn: dict[int, list[Tensor]] = {}

    def begin(self) -> None:
        """Forget what the step before drew."""
        self._drawn = {}

    def teacher_tokens(self, micro: Placed) -> tuple[Tensor, Tensor]:
        """The teacher's tokens of unmasked global crops."""
        cls_RF, patches_RNF = self.teacher.backbone(micro.micro.global_crops, None)
        return checked(cls_RF, patches_RNF, micro, "the teacher")

    def student_tokens(self, micro: Placed, patches: Patches) -> tuple[Tensor, Tensor]:
        """The student's tokens of global crops, masked unless ``hide_patches`` is False."""
        crops = micro.micro.global_crops
        masks = micro.micro.masks if self.hide_patches else None
        with self._replayed(micro.start, crops.device):
            cls_RF, patches_RNF = self.student.backbone(crops, masks)
        cls_RF, patches_RNF = checked(cls_RF, patches_RNF, micro, "the student")
        if patches == "masked":
            return cls_RF, patches_RNF.flatten(0, 1)[micro.masked_rows()]
        return cls_RF, patches_RNF

    def student_local_tokens(self, micro: Placed) -> Tensor | None:
        """The student's CLS tokens of local crops."""
        if micro.micro.local_crops is None:
            return None
        return self.student.backbone(micro.micro.local_crops, None)[0]

    @contextmanager
    def _replayed(self, start: int, device: torch.device) -> Iterator[None]:
        """Draw what the first forward at this place drew; the generators are left as they are."""
        if start not in self._drawn:
            self._drawn[start] = generator_states(device)
            yield
            return
        now = generator_states(device)
        set_generator_states(self._drawn[start], device)
        try:
            yield
        finally:
            set_generator_states(now, device)


def checked(cls_RF: Tensor, patches_RNF: Tensor, micro: Placed, who: str) -> tuple[Tensor, Tensor]:
    """Refuse tokens of other shapes than the crops and masks ask for. Raises: ValueError."""
    rows, patches = micro.micro.masks.shape
    if cls_RF.ndim != 2 or len(cls_RF) != rows:
        raise ValueError(
            f"{who} returned CLS tokens of shape {tuple(cls_RF.shape)}; expected"
            f" [{rows}, features]: {GLOBAL_VIEWS} global crops of {micro.images} images"
        )
    if patches_RNF.ndim != 3 or patches_RNF.shape[:2] != (rows, patches):
        raise ValueError(
            f"{who} returned patch tokens of shape {tuple(patches_RNF.shape)}; expected"
            f" [{rows}, {patches}, features], a token for each column of the masks"
        )
    return cls_RF, patches_RNF


def generator_states(device: torch.device) -> list[Tensor]:
    """The states of the global random generators of the CPU and of a GPU."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def set_generator_states(states: list[Tensor], device: torch.device) -> None:
    """Set the states of the global random generators."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """``teacher = momentum * teacher + (1 - momentum) * student``; once an optimizer step."""
    pairs: Iterable[tuple[Tensor, Tensor]] = zip(
        teacher.parameters(), student.parameters(), strict=True
    )
    averages, weights = zip(*pairs, strict=True)
    torch._foreach_lerp_(list(averages), list(weights), 1 - momentum)
