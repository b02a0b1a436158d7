"""Floating-point operations of a step, by part: a product and a sum are two.

What is counted are matrix products, as torch.utils.flop_counter counts them; sums, norms and views
are not. A backward takes two products for each of the forward's (one for the weights, one for what
came in), and the fused attention one more, for it computes its logits again.

T tokens of a crop, N patches, D features, K prototypes.
"""

from dino_x.config import CropSizes
from dino_x.losses.memory import CPU_BYTES
from dino_x.losses.pair_chunks import BLOCK_ROWS
from dino_x.losses.sinkhorn_sweeps import KEEP_FACTOR
from dino_x.planning.shapes import HeadShape, Step, Vit
from dino_x.training.window import GLOBAL_VIEWS

BACKWARD = 2.0  # of a product, in products of the forward
ATTENTION_BACKWARD = 2.5


def patch_embedding(vit: Vit, side: int) -> float:
    """Of one crop."""
    return 2.0 * vit.patches(side) * vit.width * vit.patch**2 * vit.channels


def linear_layers(vit: Vit, side: int) -> float:
    """Of one crop, in all layers."""
    return 2.0 * vit.depth * vit.tokens(side) * vit.matrices


def attention(vit: Vit, side: int) -> float:
    """Of one crop, in all layers: logits, and the sums of values."""
    return 4.0 * vit.depth * vit.tokens(side) ** 2 * vit.width


def forward(vit: Vit, side: int) -> float:
    """Of one crop through a backbone."""
    return patch_embedding(vit, side) + linear_layers(vit, side) + attention(vit, side)


def training(vit: Vit, side: int) -> float:
    """Forward and backward of one crop; pixels have no gradient."""
    return (
        2 * patch_embedding(vit, side)
        + (1 + BACKWARD) * linear_layers(vit, side)
        + (1 + ATTENTION_BACKWARD) * attention(vit, side)
    )


def head_mlp(head: HeadShape, rows: float) -> float:
    """Of so many rows to their bottlenecks."""
    return 2.0 * head.matrices * rows


def prototype_loss(head: HeadShape, students: float, teachers: float, paired: float) -> float:
    """Cross-entropy with gradients: logits of both, and two products back from the student's.

    Args:
        head: its sizes.
        students, teachers: rows.
        paired: teacher rows that a student row is multiplied with, see losses/pair_chunks.py.
    """
    one_row = 2.0 * head.prototypes * head.bottleneck
    return one_row * (3 * students + teachers) + 4.0 * head.prototypes * paired * students


def sinkhorn(step: Step, rows: float, working_bytes: int = CPU_BYTES) -> float:
    """Of a step's rows of one head: their logits, once in each iteration unless they are kept."""
    head, loss = step.teacher_head, step.options.loss
    if loss.centering != "sinkhorn":
        return 2.0 * head.prototypes * head.bottleneck  # of the mean
    kept = rows * head.prototypes / step.processes * 4 <= KEEP_FACTOR * working_bytes
    once = 1 if kept or loss.implementation == "reference" else loss.sinkhorn_iterations
    logits = 2.0 * once * rows * head.prototypes * head.bottleneck
    return logits + 4.0 * loss.sinkhorn_iterations * rows * head.prototypes


def of_sizes(step: Step, sizes: CropSizes, working_bytes: int = CPU_BYTES) -> dict[str, float]:
    """FLOP an image of a step with these crop sizes, by part."""
    batch, masked, options = step.effective_batch, step.masked(sizes), step.options
    views = GLOBAL_VIEWS + step.locals
    # A block of students meets the teachers of all images that it touches.
    paired = GLOBAL_VIEWS * (1 + (BLOCK_ROWS - 1) / views)
    loss = prototype_loss(step.head, views, GLOBAL_VIEWS, paired)
    rows, teacher_rows = views + masked, GLOBAL_VIEWS + masked
    if options.loss.ibot_weight:
        loss += prototype_loss(step.head, masked, masked, BLOCK_ROWS)
    else:
        rows = views
    queue = options.loss.queue
    parts = {
        "teacher": GLOBAL_VIEWS * forward(step.teacher, sizes.global_size),
        "student, for KoLeo": GLOBAL_VIEWS * forward(step.student, sizes.global_size)
        if step.two_passes
        else 0.0,
        "student, global crops": GLOBAL_VIEWS * training(step.student, sizes.global_size),
        "student, local crops": step.locals * training(step.student, sizes.local_size)
        if step.locals
        else 0.0,
        "heads": (1 + BACKWARD) * head_mlp(step.head, rows)
        + head_mlp(step.teacher_head, teacher_rows),
        "loss over prototypes": loss,
        "Sinkhorn-Knopp": sum(
            sinkhorn(step, batch * own + queue, working_bytes) for own in (GLOBAL_VIEWS, masked)
        )
        / batch,
    }
    if step.gram is not None:
        patches = step.student.patches(sizes.global_size)
        distance = 2.0 * patches**2 * (2 * step.student.width + step.gram.width)
        parts["Gram teacher and loss"] = GLOBAL_VIEWS * (
            forward(step.gram, sizes.gram_size or sizes.global_size) + distance
        )
    return {name: value for name, value in parts.items() if value}


def by_part(step: Step, working_bytes: int = CPU_BYTES) -> dict[str, float]:
    """FLOP an image by part, on average over the sets of crop sizes."""
    total = sum(one.weight for one in step.sizes)
    found: dict[str, float] = {}
    for one in step.sizes:
        for name, value in of_sizes(step, one, working_bytes).items():
            found[name] = found.get(name, 0.0) + value * one.weight / total
    return found
