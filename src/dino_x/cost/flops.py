"""Floating-point operations of a step, by part: a product and a sum are two.

What is counted are matrix products, as torch.utils.flop_counter counts them; sums, norms and views
are not. A backward takes two products for each of the forward's (one for the weights, one for what
came in), and the fused attention one more, for it computes its logits again. What the student's
blocks leave out is left out here: branches that stochastic depth drops, on average, and in the last
block the tokens that nobody looks at, after attention (see model/blocks.py).

T tokens of a crop, N patches, D features, K prototypes.
"""

from dino_x.config.options import CropSizes
from dino_x.cost.shapes import HeadShape, Step, Vit
from dino_x.losses.memory import CPU_BYTES
from dino_x.losses.pair_chunks import BLOCK_ROWS
from dino_x.losses.sinkhorn_sweeps import KEEP_FACTOR
from dino_x.views.sizes import GLOBAL_VIEWS

BACKWARD = 2.0  # of a product, in products of the forward
ATTENTION_BACKWARD = 2.5


def patch_embedding(vit: Vit, side: int) -> float:
    """The FLOP of the patch embedding of one crop."""
    return 2.0 * vit.patches(side) * vit.width * vit.patch**2 * vit.channels


def blocks(vit: Vit, side: int, looked: float | None = None) -> tuple[float, float]:
    """The FLOP of one crop in all blocks: matrices, and attention (logits, sums of values).

    Args:
        vit: its sizes.
        side: of the crop in pixels.
        looked: tokens of the last block that are looked at; all if None.
    """
    tokens = vit.tokens(side)
    spared = 0.0 if looked is None else (tokens - looked) * vit.after_attention
    matrices = 2.0 * (vit.depth * tokens * vit.matrices - spared)
    return matrices, 4.0 * vit.depth * tokens**2 * vit.width


def forward(vit: Vit, side: int, looked: float | None = None, keep: float = 1.0) -> float:
    """The FLOP of one crop through a backbone that computes ``keep`` of its branches."""
    return patch_embedding(vit, side) + keep * sum(blocks(vit, side, looked))


def training(vit: Vit, side: int, looked: float | None = None, keep: float = 1.0) -> float:
    """Forward and backward of one crop; pixels have no gradient."""
    matrices, attention = blocks(vit, side, looked)
    inside = (1 + BACKWARD) * matrices + (1 + ATTENTION_BACKWARD) * attention
    return 2 * patch_embedding(vit, side) + keep * inside


def again(vit: Vit, side: int, looked: float | None = None, keep: float = 1.0) -> float:
    """The FLOP that activation checkpointing adds to one crop: its blocks' forward.

    Without what their last matrix gives, which no backward needs if no branch is dropped.
    """
    tokens = vit.tokens(side)
    last = tokens if looked is None else looked
    unneeded = 2.0 * ((vit.depth - 1) * tokens + last) * vit.width * vit.hidden
    return keep * sum(blocks(vit, side, looked)) - (unneeded if keep == 1 else 0.0)


def head_mlp(head: HeadShape, rows: float) -> float:
    """The FLOP of a head's MLP, from rows to their bottlenecks."""
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
    """The FLOP of one head's logits in a step: once in each iteration, unless they are kept."""
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
    student, keep = step.student, step.keep
    crops = [(GLOBAL_VIEWS, sizes.global_size, step.looked(sizes))]
    if step.locals:
        crops.append((step.locals, sizes.local_size, 1.0))
    parts = {
        "teacher": GLOBAL_VIEWS * forward(step.teacher, sizes.global_size),
        "student, for KoLeo": step.passed_twice
        * GLOBAL_VIEWS
        * forward(student, sizes.global_size, 1, keep),
    }
    for name, (number, side, looked) in zip(("global", "local"), crops, strict=False):
        parts[f"student, {name} crops"] = number * training(student, side, looked, keep)
    if options.train.activation_checkpointing:
        parts["student, once more (checkpointing)"] = sum(
            number * again(student, side, looked, keep) for number, side, looked in crops
        )
    parts |= {
        "heads": (1 + BACKWARD) * head_mlp(step.head, rows)
        + head_mlp(step.teacher_head, teacher_rows),
        "loss over prototypes": loss,
        "Sinkhorn-Knopp": sum(
            sinkhorn(step, batch * own + queue, working_bytes) for own in (GLOBAL_VIEWS, masked)
        )
        / batch,
    }
    if step.gram is not None:
        parts["Gram teacher and loss"] = GLOBAL_VIEWS * gram(step, sizes)
    return {name: value for name, value in parts.items() if value}


def by_part(step: Step, working_bytes: int = CPU_BYTES) -> dict[str, float]:
    """FLOP an image by part, on average over the sets of crop sizes."""
    found: dict[str, float] = {}
    for sizes, share in shares(step):
        for name, value in of_sizes(step, sizes, working_bytes).items():
            found[name] = found.get(name, 0.0) + value * share
    return found


def needed(step: Step) -> float:
    """FLOP an image that any implementation of the step needs, for comparing implementations.

    Dropped branches are not computed, but all tokens of every block are. Each row meets the
    prototypes once, and the student's rows twice more for their gradients. Nothing is computed
    again: not in Sinkhorn-Knopp, not for KoLeo, not in the backward.
    """
    total = 0.0
    for sizes, share in shares(step):
        masked = step.masked(sizes) if step.options.loss.ibot_weight else 0.0
        students, teachers = GLOBAL_VIEWS + step.locals + masked, GLOBAL_VIEWS + masked
        one = GLOBAL_VIEWS * forward(step.teacher, sizes.global_size)
        one += GLOBAL_VIEWS * training(step.student, sizes.global_size, keep=step.keep)
        if step.locals:
            one += step.locals * training(step.student, sizes.local_size, keep=step.keep)
        one += (1 + BACKWARD) * head_mlp(step.head, students)
        one += head_mlp(step.teacher_head, teachers)
        one += prototype_loss(step.head, students, teachers, paired=0.0)
        if step.gram is not None:
            one += GLOBAL_VIEWS * gram(step, sizes)
        total += share * one
    return total


def gram(step: Step, sizes: CropSizes) -> float:
    """The FLOP of one crop through the Gram teacher, and of the distance between the patches."""
    assert step.gram is not None
    patches = step.student.patches(sizes.global_size)
    distance = 2.0 * patches**2 * (2 * step.student.width + step.gram.width)
    return forward(step.gram, sizes.gram_size or sizes.global_size) + distance


def shares(step: Step) -> list[tuple[CropSizes, float]]:
    """The sets of crop sizes, and the share of steps that have each."""
    total = sum(one.weight for one in step.sizes)
    return [(one, one.weight / total) for one in step.sizes]
