"""The two or three settings that are most likely to help, for each state of ``states.py``.

Each is ``section.key=value: why``, with a value that differs from the run's own.
"""

from collections.abc import Callable

from dino_x.config.options import LossOptions, Options
from dino_x.config.policy import ROWS_PER_IMAGE

MOST = 3
SHORT_RUN, SHORT_MOMENTUM, LONG_MOMENTUM = 1000, 0.9, 0.99  # steps; docs/recipes.md
# A teacher temperature below this gives targets of one prototype. It is the small preset's, the
# lowest we tried.
COLD = 0.03
WARM = 0.04  # DINOv3's at the start
FEW_PROTOTYPES = 1024  # enough for the small data on which runs do not start


def advice(state: str, options: Options) -> list[str]:
    """Two or three settings for a state, most likely first; none for a state it does not know."""
    if state not in ADVICE:
        return []
    different = dict.fromkeys(ADVICE[state](options))
    return list(different)[:MOST]


def _lower_rate(options: Options, why: str) -> str:
    return f"optim.lr={options.optim.lr / 3:.2g}: {why} (now {options.optim.lr:g})"


def _longer_warmup(options: Options) -> str:
    now = options.optim.warmup or 0
    return f"optim.warmup={max(2 * now, 10)}: a gentler start (now {now})"


def _more_spread(options: Options, why: str) -> str:
    """More weight for the term that spreads features, or such a term where there is none."""
    loss = options.loss
    if loss.regularizer == "none":
        return f"loss.regularizer=koleo: {why} (now none)"
    name, now = "loss.koleo_weight", loss.koleo_weight
    if loss.regularizer == "sigreg":
        name, now = "loss.sigreg_weight", loss.sigreg_weight
    return f"{name}={2 * now if now else 0.1:g}: {why} (now {now:g})"


def spread_weight(loss: LossOptions) -> float:
    """Weight of the term that spreads features; 0 without one."""
    weights = {"koleo": loss.koleo_weight, "sigreg": loss.sigreg_weight, "none": 0.0}
    return weights[loss.regularizer]


def _temperature(value: float) -> str:
    return f"teacher.temperature={value:.2g} teacher.temperature_start={value:.2g}"


def _momentum(options: Options) -> str:
    value = SHORT_MOMENTUM if (options.train.steps or 0) < SHORT_RUN else LONG_MOMENTUM
    return f"teacher.momentum={value}"


def _uniform(options: Options) -> list[str]:
    loss, batch = options.loss, options.train.effective_batch
    teacher, head = options.teacher, options.head
    seen = batch + loss.queue // ROWS_PER_IMAGE
    small = loss.centering == "sinkhorn" and seen < loss.floor
    lines = []
    if small:
        lines.append(
            f"train.effective_batch={loss.floor}: Sinkhorn-Knopp over so few images (now {seen})"
            " blurs targets toward uniform; memory does not grow"
        )
    if head.init == "normal":
        lines.append(
            f"head.init=fan_in: heads of std 0.02 say almost nothing at first (now {head.init})"
        )
    temperature = _temperature(teacher.temperature / 2)
    lines.append(f"{temperature}: sharper targets (now {teacher.temperature:g})")
    if head.prototypes > FEW_PROTOTYPES:
        lines.append(
            f"head.prototypes={FEW_PROTOTYPES}: fewer to tell apart (now {head.prototypes:,})"
        )
    rate = options.optim.lr
    lines.append(f"optim.lr={2 * rate:.2g}: a faster start (now {rate:g})")
    return lines


def _point(options: Options) -> list[str]:
    loss, teacher = options.loss, options.teacher
    coldest = min(teacher.temperature, teacher.temperature_start)
    softmax = loss.centering == "softmax"
    lines = []
    if softmax:
        lines.append(
            "loss.centering=sinkhorn: its targets use all prototypes (now softmax); from an"
            f" effective batch of {loss.floor} up"
        )
    if coldest < COLD:
        lines.append(f"{_temperature(WARM)}: softer targets (now {coldest:g})")
    if not spread_weight(loss):
        lines.append(_more_spread(options, "images are pushed apart"))
    if softmax and loss.center_momentum > 0.95:
        lines.append(
            f"loss.center_momentum=0.9: a center that follows (now {loss.center_momentum:g})"
        )
    lines.append(_lower_rate(options, "smaller updates"))
    lines.append(_more_spread(options, "images are pushed apart"))
    return lines


def _dimensional(options: Options) -> list[str]:
    return [
        _more_spread(options, "images are pushed apart"),
        _lower_rate(options, "large updates put all images into few directions"),
        _longer_warmup(options),
    ]


def _diverging(options: Options) -> list[str]:
    clip = options.optim.clip
    lines = [_lower_rate(options, "smaller updates"), _longer_warmup(options)]
    if options.train.precision == "bf16":
        lines.append("train.precision=fp32: bf16 has 3 digits")
    if not 0 < clip <= 1:
        now = f"{clip:g}" if clip else "off"
        lines.append(f"optim.clip=1: limits what one step can do (now {now})")
    return lines


def _teacher_is_student(options: Options) -> list[str]:
    teacher = options.teacher
    lines = [_fault_in_code(options)]
    if teacher.momentum < 0.5:
        now = f"{teacher.momentum:g}"
        lines = [f"{_momentum(options)}: the teacher is an average of earlier students (now {now})"]
    if teacher.momentum_end < 0.5:
        lines.append(f"teacher.momentum_end=1: where it rises to (now {teacher.momentum_end:g})")
    return lines


def _fault_in_code(options: Options) -> str:
    """The advice where the momentum of the teacher is a usual one."""
    return (
        f"none: teacher.momentum is {options.teacher.momentum:g}, so the fault is in the code that"
        " updates the teacher"
    )


def _teacher_frozen(options: Options) -> list[str]:
    now = options.teacher.momentum
    if now >= 1:
        return [f"{_momentum(options)}: the teacher follows the student (now {now:g})"]
    return [_fault_in_code(options)]


ADVICE: dict[str, Callable[[Options], list[str]]] = {
    "uniform": _uniform,
    "point": _point,
    "dimensional": _dimensional,
    "diverging": _diverging,
    "teacher-is-student": _teacher_is_student,
    "teacher-frozen": _teacher_frozen,
}
