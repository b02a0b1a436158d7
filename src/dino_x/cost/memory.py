"""Memory of a training step, by part, in bytes: pure arithmetic on shapes.

The peak of a step is usually in phase 3 (see training/step/exact_step.py): gradients and optimizer
state are there, and the activations of one micro-batch are held until its backward. What the
effective batch adds to it are bottlenecks and, for KoLeo, one row of features a global view.

b images of a micro-batch, T tokens, N patches, D features, F of the backbone, K prototypes.
"""

from dataclasses import dataclass

import torch

from dino_x.cost.shapes import HeadShape, Step, Vit
from dino_x.losses.fused_cross_entropy import LEAST_ROWS, MOST_ROWS
from dino_x.losses.memory import CPU_BYTES, CUDA_SHARE
from dino_x.losses.sinkhorn_sweeps import KEEP_FACTOR
from dino_x.views.crops import BLOCK_BYTES
from dino_x.views.sizes import GLOBAL_VIEWS

GIB = 2**30
MOMENTS = 2  # of AdamW: two numbers a weight
BOTTLENECK_COPIES = 3  # of a row in the graph: as it comes, in float32, normalised
CUDA_CONTEXT = 0.6 * GIB  # the driver's and cuBLAS's own, about
# A CPU process takes that times what tensors ask for: pieces of all sizes leave gaps between them.
# Measured at 1.3 to 2.3 with glibc, and near 1 where large pieces are mapped on their own
# (MALLOC_MMAP_THRESHOLD_=131072), which takes longer; see docs/memory.md.
CPU_GAPS = 1.9
KEPT_FREE = 0.08  # share of GPU memory that is left for what the allocator cannot use


@dataclass(frozen=True)
class Numerics:
    """What decides the width of numbers and the size of workspaces.

    Attributes:
        precision: as in ``train.precision``.
        device: "cpu" or "cuda".
        working: bytes that a loss may work in, see losses/memory.py.
    """

    precision: str
    device: str
    working: int

    @classmethod
    def on(cls, precision: str, device: torch.device) -> "Numerics":
        """On a device of this machine."""
        if device.type != "cuda":
            return cls(precision, "cpu", CPU_BYTES)
        return cls.of_gpu(precision, torch.cuda.get_device_properties(device).total_memory)

    @classmethod
    def of_gpu(cls, precision: str, gpu_bytes: int) -> "Numerics":
        """The numerics on a GPU with so many bytes of memory."""
        return cls(precision, "cuda", gpu_bytes // CUDA_SHARE)

    @property
    def wide(self) -> int:
        """Bytes of a weight."""
        return 8 if self.precision == "fp64" else 4

    @property
    def narrow(self) -> int:
        """Bytes of a number inside the network."""
        return 2 if self.precision == "bf16" else self.wide


def of_layer(vit: Vit, numerics: Numerics, looked: float = 1.0) -> float:
    """Bytes that a layer keeps of one token for the backward.

    The residual stream before both norms is wide. Narrow are the outputs of both norms, the product
    of queries, keys and values, the first two of them once more, turned by their positions, the
    attention's output, and the MLP on both sides of its activation.

    Args:
        vit: its sizes.
        numerics: how wide numbers are.
        looked: share of tokens that are made after attention; if not all, their attention's output
            is a copy.
    """
    width, narrow = vit.width, numerics.narrow
    attended = (5 + 2 * vit.turned) * width * narrow + width * numerics.wide + 8 + 4 * vit.heads
    mlp = (4 if vit.gated else 2) * vit.hidden
    after = (width + mlp) * narrow + width * numerics.wide + 8
    copied = looked * width * narrow if looked < 1 else 0.0
    return attended + looked * after + copied


def of_matrices(vit: Vit, numerics: Numerics) -> float:
    """Bytes of a layer's matrices as they are multiplied, made again in each forward: queries, keys
    and values in one, and the last of both branches with their scales in it.
    """
    return float((4 * vit.width**2 + vit.width * vit.hidden) * numerics.narrow)


def converted(vit: Vit, numerics: Numerics) -> float:
    """Bytes of a layer's other matrices in bf16, made once for all forwards of a micro-batch."""
    if numerics.precision != "bf16":
        return 0.0
    return 2.0 * (vit.matrices - 4 * vit.width**2 - vit.width * vit.hidden)


def of_crops(
    vit: Vit,
    crops: float,
    side: int,
    numerics: Numerics,
    looked: float | None = None,
    keep: float = 1.0,
    recompute: bool = False,
) -> float:
    """Bytes that a forward of so many crops keeps for the backward: pixels, layers, final norm.

    Args:
        vit: its sizes.
        crops: how many, of
        side: pixels.
        numerics: how wide numbers are.
        looked: tokens of a crop that the last layer makes; all if None.
        keep: share of branches that are computed; the others keep nothing.
        recompute: whether of a layer only its input is kept.
    """
    tokens = vit.tokens(side)
    made = tokens if looked is None else looked
    pixels = vit.channels * side**2 * numerics.narrow
    ends = made * (2 * vit.width * numerics.wide + 8)
    if recompute:
        return crops * (pixels + vit.depth * tokens * vit.width * numerics.wide + ends)
    layers = (vit.depth - 1) * of_layer(vit, numerics) + of_layer(vit, numerics, made / tokens)
    matrices = vit.depth * of_matrices(vit, numerics) if crops else 0.0
    return crops * (pixels + keep * tokens * layers + ends) + matrices


def of_head(head: HeadShape, rows: float, numerics: Numerics) -> float:
    """Bytes that a head keeps of its rows for the backward."""
    hidden = 2 * (head.layers - 1) * head.hidden * numerics.narrow
    inputs = head.features * (numerics.wide + (numerics.narrow < numerics.wide) * numerics.narrow)
    outputs = BOTTLENECK_COPIES * head.bottleneck * numerics.wide
    return rows * (hidden + inputs + outputs)


def of_chunk(head: HeadShape, rows: float, numerics: Numerics) -> float:
    """Bytes of the logits that the loss holds at a time."""
    row = head.prototypes * numerics.wide
    return min(max(LEAST_ROWS, numerics.working // row), MOST_ROWS, max(rows, 1)) * row


def of_backward(
    vit: Vit, crops: float, side: int, numerics: Numerics, keep: float, recompute: bool
) -> float:
    """Bytes of the gradients inside a layer while it is differentiated; and of the layer's own
    activations, if they are computed again.
    """
    mlp = (2 if not vit.gated else 4) * vit.hidden * numerics.narrow
    rows = crops * vit.tokens(side)
    inside = rows * (keep * mlp + 2 * vit.width * numerics.wide)
    if not recompute:
        return inside
    again = keep * rows * of_layer(vit, numerics) + of_matrices(vit, numerics)
    return inside + again + converted(vit, numerics)


def making_views(step: Step, views: int, side: int, numerics: Numerics) -> float:
    """Bytes between canvases and crops, beside the crops."""
    planes = views * step.micro_batch * step.channels * step.canvas * side * numerics.wide
    if numerics.device == "cpu":
        return min(3.0 * planes, 3.0 * BLOCK_BYTES * torch.get_num_threads())
    return 3.0 * planes


def weights(step: Step, numerics: Numerics) -> dict[str, float]:
    """Bytes of the weights before the first step; of sharded networks, of this process's shard."""
    wide = numerics.wide
    parts = {
        "student, backbone": step.student.weights * wide,
        "student, heads": 2 * step.head.weights * wide,
        "teacher, backbone": step.student.weights * wide,
        "teacher, heads": 2 * step.head.weights * wide,
    }
    if step.options.teacher.model:
        distilled = step.teacher.weights + 2 * step.teacher_head.weights
        parts["distilled teacher"] = distilled * wide
    if step.gram is not None:
        parts["Gram teacher"] = step.gram.weights * wide
    return {name: float(value) / step.parts for name, value in parts.items()}


def gradients(step: Step, numerics: Numerics) -> dict[str, float]:
    """Bytes of the gradient of all that is trained."""
    whole = (step.student.weights + 2 * step.head.weights) * numerics.wide
    return {"gradients": float(whole) / step.parts}


def optimizer(step: Step, numerics: Numerics) -> dict[str, float]:
    """Bytes that come with the first step and stay."""
    return {"optimizer (AdamW)": MOMENTS * gradients(step, numerics)["gradients"]}


def put_together(step: Step, numerics: Numerics) -> dict[str, float]:
    """Bytes of the weights that are gathered for a while where networks are sharded.

    A block and the next one, a block's gradient, a head's MLP, and in the losses the prototypes of
    student and teacher.
    """
    if step.parts == 1:
        return {}
    heads = 2 if step.options.loss.ibot_weight else 1
    prototypes = step.head.prototypes * step.head.bottleneck
    prototypes += step.teacher_head.prototypes * step.teacher_head.bottleneck
    whole = 3 * step.student.matrices + step.head.mlp + heads * prototypes
    return {"put together from parts": float(whole * numerics.wide)}


def kept(step: Step, numerics: Numerics) -> dict[str, float]:
    """Bytes of the effective batch between the phases of a step, and of the queue."""
    rows = GLOBAL_VIEWS + step.masked(step.largest)
    bottleneck = step.teacher_head.bottleneck * numerics.wide
    own = rows * step.share * bottleneck
    pulls = GLOBAL_VIEWS * step.share * step.student.width * numerics.wide
    parts = {"effective batch, bottlenecks": own + (pulls if step.two_passes else 0.0)}
    queue = step.options.loss.queue
    if queue:  # the one of this step, and the next
        parts["queue"] = 2.0 * 2 * queue * bottleneck
    return parts


def activations(step: Step, numerics: Numerics) -> dict[str, float]:
    """Bytes that one micro-batch keeps until its backward."""
    sizes, student, images = step.largest, step.student, step.micro_batch
    masked = step.masked(sizes) * images if step.options.loss.ibot_weight else 0.0
    views = (GLOBAL_VIEWS + step.locals) * images
    how = (step.keep, step.options.train.activation_checkpointing)
    parts = {
        "activations, global crops": of_crops(
            student, GLOBAL_VIEWS * images, sizes.global_size, numerics, step.looked(sizes), *how
        ),
        "activations, local crops": of_crops(
            student, step.locals * images, sizes.local_size, numerics, 1.0, *how
        ),
        "activations, heads": of_head(step.head, views + masked, numerics),
    }
    return {name: value for name, value in parts.items() if value}


def losses(step: Step, numerics: Numerics) -> dict[str, float]:
    """Bytes of the loss: the gradient of each head's prototypes, and a chunk of logits."""
    head, sizes = step.head, step.largest
    heads = 2 if step.options.loss.ibot_weight else 1
    prototypes = head.prototypes * head.bottleneck * numerics.wide
    rows = max(2 * GLOBAL_VIEWS + step.locals, 2 * step.masked(sizes)) * step.micro_batch
    chunk = of_chunk(head, rows, numerics)
    if step.options.loss.implementation == "reference":
        chunk = 4.0 * rows * head.prototypes * numerics.wide
    # Normalised ones of student and teacher are held, and three copies made in their backward.
    copies = heads + (2 * heads + 3) * head.normalised
    return {
        "losses, gradients of prototypes": float(copies * prototypes),
        "losses, chunks of logits": chunk,
    }


def canvases(step: Step, numerics: Numerics) -> dict[str, float]:
    """Bytes of a micro-batch's canvases; on a CPU also of the next one's."""
    canvas = step.channels * step.canvas**2 * numerics.wide
    at_once = 2 if numerics.device == "cpu" else 1
    return {"canvases and crops": float(at_once * step.micro_batch * canvas)}


def pictures(step: Step, numerics: Numerics) -> dict[str, float]:
    """Bytes of canvases, and of crops while they are made."""
    sizes = step.largest
    making = max(
        making_views(step, GLOBAL_VIEWS, sizes.global_size, numerics),
        making_views(step, step.locals, sizes.local_size, numerics),
    )
    return {name: value + making for name, value in canvases(step, numerics).items()}


def inside(step: Step, numerics: Numerics, *, heads: bool = True) -> dict[str, float]:
    """Bytes of gradients inside the network, and of weights converted to bf16.

    Inside are the gradients of a layer's tokens, or that of the largest matrix before it is added
    to the one of the micro-batches before. Without ``heads`` once their backward is over.
    """
    sizes, student, head = step.largest, step.student, step.head
    recompute = step.options.train.activation_checkpointing
    how = (numerics, step.keep, recompute)
    tokens = max(
        of_backward(student, GLOBAL_VIEWS * step.micro_batch, sizes.global_size, *how),
        of_backward(student, step.locals * step.micro_batch, sizes.local_size, *how),
    )
    matrix = max(head.largest if heads else 0, student.width * student.hidden) * numerics.wide
    there = 0.0 if recompute else student.depth * converted(student, numerics)
    if numerics.precision == "bf16":
        there += 2.0 * student.width * student.channels * student.patch**2
        there += 2.0 * 2 * head.matrices if heads else 0.0
    return {"inside the backward": max(tokens, matrix) + there}


def targets(step: Step, numerics: Numerics) -> dict[str, float]:
    """Bytes of phase 1: all bottlenecks in three copies, logits of tiles, a forward's own."""
    masked, head = step.masked(step.largest), step.teacher_head
    rows = step.effective_batch * (GLOBAL_VIEWS + masked)
    everyones = 3.0 * rows * head.bottleneck * numerics.wide
    teacher, side = step.teacher, step.largest.global_size
    token = (2 * teacher.hidden + 4 * teacher.width) * numerics.wide
    forward = GLOBAL_VIEWS * step.micro_batch * teacher.tokens(side) * token
    solved = step.effective_batch * max(GLOBAL_VIEWS, masked) + step.options.loss.queue
    logits = solved * head.prototypes / step.processes * numerics.wide
    if step.options.loss.centering != "sinkhorn":
        logits = 0.0
    elif step.options.loss.implementation == "fused" and logits > KEEP_FACTOR * numerics.working:
        logits = float(numerics.working)
    return {"targets of the effective batch": everyones + max(forward, logits)}


def moments(step: Step, numerics: Numerics) -> list[dict[str, float]]:
    """Bytes by part whenever a step may be at its peak, of one process on its device.

    Local crops go through the network after the global ones, and backward before them. Autograd
    holds their gradient of each weight until that of the global crops comes to it: a copy of the
    backbone, in the place of the activations of the local crops. With one micro-batch a step there
    are no gradients yet when activations are held, but the heads' come before the backbone's.
    Sharded networks have two backwards.
    """
    there = weights(step, numerics) | optimizer(step, numerics) | kept(step, numerics)
    there |= put_together(step, numerics)
    held, loss = activations(step, numerics), losses(step, numerics)
    within = inside(step, numerics)
    full = gradients(step, numerics)
    accumulated = full if step.share > step.micro_batch else {}
    chunk = loss.pop("losses, chunks of logits")
    work = {"losses, chunks of logits": chunk} | within
    smaller = min(work, key=lambda name: work[name])
    work.pop(smaller)
    making = pictures(step, numerics)
    found = [
        there | accumulated | held | loss | work | making,
        there | full | making,
        there | targets(step, numerics) | making,
    ]
    there |= canvases(step, numerics) | inside(step, numerics, heads=False)
    there |= accumulated or {"gradients": 2.0 * step.head.weights * numerics.wide / step.parts}
    crops = {name: v for name, v in held.items() if name.endswith("crops")}
    found.append(there | crops)
    if step.locals and step.parts == 1:
        crops.pop("activations, local crops")
        waiting = gradients_of_locals(step, numerics)
        found.append(there | crops | {"gradients of local crops": waiting})
    return found


def gradients_of_locals(step: Step, numerics: Numerics) -> float:
    """Bytes of the backbone's gradient that waits for that of the global crops.

    In bf16 some are narrow. Where activations are made again, there is most of that and of this
    once the last layer is over, which has few.
    """
    student = step.student
    in_bf16 = student.depth * converted(student, numerics) / 2
    waiting = (student.weights - in_bf16) * numerics.wide + in_bf16 * numerics.narrow
    over = 1 if step.options.train.activation_checkpointing else 0
    return waiting * (student.depth - over) / student.depth


def by_part(step: Step, numerics: Numerics) -> dict[str, float]:
    """Bytes by part at the peak of a step, of one process on its device."""
    return max(moments(step, numerics), key=lambda parts: sum(parts.values()))


def needed(step: Step, numerics: Numerics) -> float:
    """Bytes of a process on its device at the peak of a step, weights too."""
    return sum(by_part(step, numerics).values())


def still_needed(step: Step, numerics: Numerics) -> float:
    """Bytes that tensors add to what is there once the networks are made."""
    return needed(step, numerics) - sum(weights(step, numerics).values())


def still_taken(step: Step, numerics: Numerics) -> float:
    """Bytes that the process adds: on a CPU with what the allocator loses."""
    gaps = CPU_GAPS if numerics.device == "cpu" else 1.0
    return gaps * still_needed(step, numerics)


def cached_images(step: Step) -> float:
    """Bytes of the images that are kept decoded in main memory, ``data.cache_mb`` at the most."""
    limit = step.options.data.cache_mb * 2.0**20
    if step.images is None:
        return limit
    return min(limit, step.images * decoded_image(step))


def decoded_images(step: Step) -> float:
    """Bytes of all decoded images in main memory: the cache, and those that a step keeps."""
    return cached_images(step) + step.share * decoded_image(step)


def decoded_image(step: Step) -> float:
    """Bytes of one decoded image, of 16-bit numbers."""
    return 2.0 * step.channels * step.canvas**2
