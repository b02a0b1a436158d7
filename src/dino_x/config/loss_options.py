"""Options of the loss: its terms, what keeps targets from collapsing, and Gram anchoring."""

from typing import Literal

from dino_x.config.section import Pixels, PositiveInt, Section, Share, option


class LossOptions(Section):
    """Loss terms and what keeps the targets from collapsing."""

    centering: Literal["auto", "sinkhorn", "softmax"] = option(
        "auto",
        "sinkhorn: Sinkhorn-Knopp. softmax: a running mean, as in DINOv1. auto: Sinkhorn-Knopp;"
        " below an effective batch of loss.floor, what loss.on_small_batch says.",
    )
    floor: PositiveInt = option(
        256,
        "Smallest effective batch for which auto chooses Sinkhorn-Knopp; 256 is this"
        " project's own choice.",
    )
    on_small_batch: Literal["queue", "fallback", "warn", "error"] = option(
        "queue",
        "What auto does below the floor: queue takes Sinkhorn-Knopp with teacher outputs of earlier"
        " steps that bring its rows to the floor, fallback takes softmax centering (DINOv1), warn"
        " takes Sinkhorn-Knopp as it is with a warning, error stops.",
    )
    queue: int = option(
        0,
        "Number of past teacher outputs (two an image) that take part in Sinkhorn-Knopp,"
        " for each head.",
        ge=0,
    )
    sinkhorn_iterations: PositiveInt = option(3, "Number of Sinkhorn-Knopp iterations.")
    sinkhorn_relaxation: Share = option(
        0.0,
        "0: every prototype is used equally. Larger values demand less equal use, for"
        " classes of unequal size. 1: no centering at all.",
    )
    center_momentum: Share = option(0.9, "Momentum of the running mean of softmax centering.")
    center_batch: PositiveInt | None = option(
        None,
        "Effective batch that center_momentum is for: it becomes center_momentum ** (effective"
        " batch / center_batch), so that the mean is over as many images at any batch. null takes"
        " center_momentum as it is.",
    )
    student_temperature: float = option(0.1, "Temperature of the student's softmax.", gt=0)
    dino_weight: float = option(
        1.0, "Weight of the DINO term, a mean over pairs of a view and another global view.", ge=0
    )
    local_weight: float = option(
        1.0,
        "Weight of a pair with a local crop within the DINO term; DINOv3's pretraining has 1.",
        ge=0,
    )
    local_weight_gram: float = option(
        0.5,
        "The same with Gram anchoring: from step gram.start the weight goes to it in"
        " gram.warmup steps. DINOv3 has 0.5.",
        ge=0,
    )
    ibot_weight: float = option(
        0.5,
        "Weight of the iBOT term, a mean over masked crops. DINOv3's 1.0 is for a mean"
        " over all crops, half of which are masked.",
        ge=0,
    )
    regularizer: Literal["koleo", "sigreg", "none"] = option(
        "koleo",
        "Term that spreads CLS features: koleo pushes each from its nearest neighbour, sigreg pulls"
        " all towards a standard normal distribution (LeJEPA). Both look at the effective batch.",
    )
    sigreg_weight: float = option(
        0.05, "Weight of the SIGReg term, the mean over the two global views.", ge=0
    )
    sigreg_directions: PositiveInt = option(
        1024, "Number of random directions of SIGReg; each step draws others."
    )
    sigreg_knots: int = option(
        17, "Number of points between -5 and 5 at which SIGReg compares.", ge=2
    )
    koleo_weight: float = option(
        0.1, "Weight of the KoLeo term of each of the two global views.", ge=0
    )
    implementation: Literal["fused", "reference"] = option(
        "fused",
        "How Sinkhorn-Knopp and the cross-entropy are computed; reference holds every"
        " logit in memory.",
    )
    koleo_group: Literal["effective"] | PositiveInt = option(
        "effective",
        "Number of images among which KoLeo looks for neighbours. The value of KoLeo"
        " depends on it.",
    )


class GramOptions(Section):
    """Gram anchoring: patch features keep the similarities they had in an earlier teacher."""

    weight: float = option(0.0, "Weight of the Gram term; 2 in DINOv3; 0 turns it off.", ge=0)
    weight_start: float = option(
        0.0, "Weight at step gram.start, from where it rises to gram.weight.", ge=0
    )
    warmup: int = option(0, "Number of steps in which the weight rises.", ge=0)
    start: int = option(0, "First step with the Gram term.", ge=0)
    teacher: str | None = option(
        None,
        "Gram teacher: a RUN, a folder or a name on the hub; null takes the EMA teacher"
        " as it is at step gram.start.",
    )
    refresh: PositiveInt | None = option(
        None,
        "Number of steps after which the Gram teacher is replaced by the current EMA"
        " teacher; null never replaces it.",
    )
    refreshes: PositiveInt = option(3, "Largest number of times that the Gram teacher is replaced.")
    size: Pixels | None = option(
        None,
        "Side of the Gram teacher's crops in pixels; null takes the student's. Its"
        " features are resized to the student's grid.",
    )
    resize: Literal["bicubic", "bilinear"] = option(
        "bicubic", "Interpolation of the Gram teacher's features."
    )
    antialias: bool = option(
        False, "Smooth the Gram teacher's features before they are made fewer; not so in DINOv3."
    )
