"""Memory of a training step, by part, in bytes: pure arithmetic on shapes.

The peak of a step is usually in phase 3 (see training/effective_batch.py): gradients and optimizer
state are there, and the activations of one micro-batch are held until its backward. What the
effective batch adds to it are bottlenecks and, for KoLeo, one row of features a global view.

b images of a micro-batch, T tokens, N patches, D features, F of the backbone, K prototypes.
"""

from dataclasses import dataclass

import torch

from dino_x.losses.fused_cross_entropy import LEAST_ROWS, MOST_ROWS
from dino_x.losses.memory import CPU_BYTES, CUDA_SHARE
from dino_x.losses.sinkhorn_sweeps import KEEP_FACTOR
from dino_x.planning.shapes import HeadShape, Step, Vit
from dino_x.training.window import GLOBAL_VIEWS
from dino_x.views.crops import BLOCK_BYTES

GIB = 2**30
MOMENTS = 2  # of AdamW: two numbers a weight
BOTTLENECK_COPIES = 3  # of a row in the graph: as it comes, in float32, normalised
CUDA_CONTEXT = 0.6 * GIB  # the driver's and cuBLAS's own, about
# A CPU process takes that times what tensors ask for: pieces of all sizes leave gaps between them.
# Measured at 1.4 to 2.1 with glibc, and near 1 where large pieces are mapped on their own
# (MALLOC_MMAP_THRESHOLD_=131072), which takes longer; see docs/memory.md.
CPU_GAPS = 1.9
KEPT_FREE = 0.08  # share of a card that is left for what the allocator cannot use


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
        return cls.of_card(precision, torch.cuda.get_device_properties(device).total_memory)

    @classmethod
    def of_card(cls, precision: str, card_bytes: int) -> "Numerics":
        """On a card of so much memory."""
        return cls(precision, "cuda", card_bytes // CUDA_SHARE)

    @property
    def wide(self) -> int:
        """Bytes of a weight."""
        return 8 if self.precision == "fp64" else 4

    @property
    def narrow(self) -> int:
        """Bytes of a number inside the network."""
        return 2 if self.precision == "bf16" else self.wide


def of_layer(vit: Vit, numerics: Numerics) -> float:
    """Bytes that a layer keeps of one token for the backward.

    The residual stream before both norms is wide. Narrow are the outputs of both norms, queries,
    keys, values, the attention's output, what LayerScale scales twice, and the MLP on both sides of
    its activation. Under bf16 the first norm's output is converted anew for each of queries, keys
    and values; a CPU keeps the attention's output in two layouts.
    """
    width, narrow = vit.width, numerics.narrow
    rows = 8 + 2 * (numerics.precision == "bf16") + (numerics.device == "cpu")
    mlp = (4 if vit.gated else 2) * vit.hidden
    statistics = 4 * 4 + 4 * vit.heads  # of two norms, and a logsumexp a head
    return 2 * width * numerics.wide + (rows * width + mlp) * narrow + statistics


def of_crops(vit: Vit, crops: float, side: int, numerics: Numerics) -> float:
    """Bytes that a forward of so many crops keeps for the backward: pixels, layers, final norm."""
    pixels = vit.channels * side**2 * numerics.narrow
    tokens = vit.depth * of_layer(vit, numerics) + 2 * vit.width * numerics.wide
    return crops * (pixels + vit.tokens(side) * tokens)


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


def of_backward(vit: Vit, crops: float, side: int, numerics: Numerics) -> float:
    """Bytes of the gradients inside a layer while it is differentiated."""
    mlp = (2 if not vit.gated else 4) * vit.hidden * numerics.narrow
    return crops * vit.tokens(side) * (mlp + 2 * vit.width * numerics.wide)


def making_views(step: Step, views: int, side: int, numerics: Numerics) -> float:
    """Bytes between canvases and crops, beside the crops."""
    planes = views * step.micro_batch * step.channels * step.canvas * side * numerics.wide
    if numerics.device == "cpu":
        return min(3.0 * planes, 3.0 * BLOCK_BYTES * torch.get_num_threads())
    return 3.0 * planes


def weights(step: Step, numerics: Numerics) -> dict[str, float]:
    """Bytes of what is there before the first step."""
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
    return {name: float(value) for name, value in parts.items()}


def gradients(step: Step, numerics: Numerics) -> dict[str, float]:
    """Bytes of the gradient of all that is trained."""
    return {"gradients": float((step.student.weights + 2 * step.head.weights) * numerics.wide)}


def optimizer(step: Step, numerics: Numerics) -> dict[str, float]:
    """Bytes that come with the first step and stay."""
    return {"optimizer (AdamW)": MOMENTS * gradients(step, numerics)["gradients"]}


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
    parts = {
        "activations, global crops": of_crops(
            student, GLOBAL_VIEWS * images, sizes.global_size, numerics
        ),
        "activations, local crops": of_crops(
            student, step.locals * images, sizes.local_size, numerics
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
    return {
        "losses, gradients of prototypes": float(
            heads * prototypes * (1 + head.normalised) + head.normalised * prototypes
        ),
        "losses, chunks of logits": chunk,
    }


def pictures(step: Step, numerics: Numerics) -> dict[str, float]:
    """Bytes of a micro-batch's images: canvases (on a CPU also the next ones), and views made."""
    canvas = step.channels * step.canvas**2 * numerics.wide
    at_once = 2 if numerics.device == "cpu" else 1
    sizes = step.largest
    making = max(
        making_views(step, GLOBAL_VIEWS, sizes.global_size, numerics),
        making_views(step, step.locals, sizes.local_size, numerics),
    )
    return {"canvases and crops": at_once * step.micro_batch * canvas + making}


def inside(step: Step, numerics: Numerics, *, heads: bool = True) -> dict[str, float]:
    """Bytes of gradients inside the network, and of weights converted to bf16.

    Inside are the gradients of a layer's tokens, or that of the largest matrix before it is added
    to the one of the micro-batches before. Without ``heads`` once their backward is over.
    """
    sizes, student, head = step.largest, step.student, step.head
    tokens = max(
        of_backward(student, GLOBAL_VIEWS * step.micro_batch, sizes.global_size, numerics),
        of_backward(student, step.locals * step.micro_batch, sizes.local_size, numerics),
    )
    matrix = max(head.largest if heads else 0, student.width * student.hidden) * numerics.wide
    converted = 0.0
    if numerics.precision == "bf16":
        kernels = student.width * student.channels * student.patch**2
        converted = 2.0 * (student.depth * student.matrices + kernels)
        converted += 2.0 * 2 * head.matrices if heads else 0.0
    return {"inside the backward": max(tokens, matrix) + converted}


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
    are no gradients yet when activations are held.
    """
    there = weights(step, numerics) | optimizer(step, numerics) | kept(step, numerics)
    there |= pictures(step, numerics)
    held, loss = activations(step, numerics), losses(step, numerics)
    within = inside(step, numerics)
    full = gradients(step, numerics)
    accumulated = full if step.share > step.micro_batch else {}
    chunk = loss.pop("losses, chunks of logits")
    work = {"losses, chunks of logits": chunk} | within
    smaller = min(work, key=lambda name: work[name])
    before = there | accumulated | held | loss | {n: v for n, v in work.items() if n != smaller}
    found = [before, there | full, there | targets(step, numerics)]
    if numerics.device == "cuda":  # AdamW over all weights at once
        found[1] = found[1] | {"inside the optimizer": sum(full.values())}
    if step.locals:
        waiting = {"gradients of local crops": float(step.student.weights * numerics.narrow)}
        held = {name: v for name, v in held.items() if name == "activations, global crops"}
        heads = {"gradients": 2.0 * step.head.weights * numerics.wide}
        found.append(
            there | (accumulated or heads) | held | waiting | inside(step, numerics, heads=False)
        )
    return found


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


def decoded_images(step: Step) -> float:
    """Bytes of the images that are kept decoded in main memory, ``data.cache_mb`` at the most."""
    limit = step.options.data.cache_mb * 2.0**20
    if step.images is None:
        return limit
    return min(limit, 2.0 * step.images * step.channels * step.canvas**2)
