"""Distillation: a frozen teacher of another size makes the targets, with its own heads.

The losses are those of pretraining (Simeoni et al. 2025, DINOv3, section 5.2). What is kept as the
model is the moving average of the student, as ever.
"""

import hashlib

from dino_x.config.options import Options
from dino_x.errors import UserError
from dino_x.model.teacher import Network
from dino_x.runs.start import load_run


def distilled_teacher(options: Options, student: Network) -> Network | None:
    """The network that ``teacher.model`` names, on the student's device; None if it names none.

    Raises: UserError if it is no RUN with heads, or its patches or prototypes are others.
    """
    name = options.teacher.model
    if name is None:
        return None
    where = next(student.parameters())
    teacher = load_run(name, where.device).network.to(where.dtype)
    sizes = {
        "patch size": (teacher.backbone.patch_size, student.backbone.patch_size),
        "prototypes": (len(teacher.dino_head.last_layer), len(student.dino_head.last_layer)),
        "iBOT prototypes": (len(teacher.ibot_head.last_layer), len(student.ibot_head.last_layer)),
        "input channels": (teacher.backbone.channels, student.backbone.channels),
    }
    for what, (its, own) in sizes.items():
        if its != own:
            raise UserError(
                f"teacher.model '{name}' has {what} {its}, the student {own}; they must be equal"
            )
    return teacher


def fingerprint(network: Network) -> str:
    """Changes with any weight: tells a resumed run whether its teacher is still the same."""
    digest = hashlib.sha256()
    for name, weight in network.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()
