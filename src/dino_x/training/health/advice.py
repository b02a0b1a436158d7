"""Which settings are most likely to help, for each state of ``states.py``: two or three.

Each is ``section.key=value: why``, with a value that differs from the run's own.
"""

from collections.abc import Callable

from dino_x.config.options import Options
from dino_x.config.policy import ROWS_PER_IMAGE

MOST = 3
SHORT_RUN, SHORT_MOMENTUM, LONG_MOMENTUM = 1000, 0.9, 0.99  # steps; docs/recipes.md
COLD = (
    0.03  # teacher temperature: targets of one prototype; the small preset's, the lowest we tried
)
WARM = 0.04  # DINOv3's at the start
FEW_PROTOTYPES = 1024  # enough for the small data on which runs do not start


def advice(state: str, options: Options) -> list[str]:
    """Two or three settings for a state, most likely first; none for a state it does not know."""
    made = ADVICE[state](options) if state in ADVICE else []
    return list(dict.fromkeys(line for line in made if line))[:MOST]


def _lower_rate(options: Options, why: str) -> str:
    return f"optim.lr={options.optim.lr / 3:.2g}: {why} (now {options.optim.lr:g})"


def _longer_warmup(options: Options) -> str:
    now = options.optim.warmup or 0
    return f"optim.warmup={max(2 * now, 10)}: a gentler start (now {now})"


def _more_koleo(options: Options, why: str) -> str:
    now = options.loss.koleo_weight
    return f"loss.koleo_weight={2 * now if now else 0.1:g}: {why} (now {now:g})"


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
    return [
        f"train.effective_batch={loss.floor}: Sinkhorn-Knopp over so few images (now {seen}) blurs"
        " targets toward uniform; memory does not grow"
        if small
        else "",
        f"head.init=fan_in: heads of std 0.02 say almost nothing at first (now {head.init})"
        if head.init == "normal"
        else "",
        f"{_temperature(teacher.temperature / 2)}: sharper targets (now {teacher.temperature:g})",
        f"head.prototypes={FEW_PROTOTYPES}: fewer to tell apart (now {head.prototypes:,})"
        if head.prototypes > FEW_PROTOTYPES
        else "",
        f"optim.lr={2 * options.optim.lr:.2g}: a faster start (now {options.optim.lr:g})",
    ]


def _point(options: Options) -> list[str]:
    loss, teacher = options.loss, options.teacher
    coldest = min(teacher.temperature, teacher.temperature_start)
    return [
        "loss.centering=sinkhorn: its targets use all prototypes (now softmax); from an effective"
        f" batch of {loss.floor} up"
        if loss.centering == "softmax"
        else "",
        f"{_temperature(WARM)}: softer targets (now {coldest:g})" if coldest < COLD else "",
        _more_koleo(options, "images are pushed apart") if not loss.koleo_weight else "",
        f"loss.center_momentum=0.9: a center that follows (now {loss.center_momentum:g})"
        if loss.centering == "softmax" and loss.center_momentum > 0.95
        else "",
        _lower_rate(options, "smaller updates"),
        _more_koleo(options, "images are pushed apart"),
    ]


def _dimensional(options: Options) -> list[str]:
    return [
        _more_koleo(options, "images are pushed apart"),
        _lower_rate(options, "large updates put all images into few directions"),
        _longer_warmup(options),
    ]


def _diverging(options: Options) -> list[str]:
    clip = options.optim.clip
    return [
        _lower_rate(options, "smaller updates"),
        _longer_warmup(options),
        "train.precision=fp32: bf16 has 3 digits" if options.train.precision == "bf16" else "",
        f"optim.clip=1: limits what one step can do (now {f'{clip:g}' if clip else 'off'})"
        if not 0 < clip <= 1
        else "",
    ]


def _teacher_is_student(options: Options) -> list[str]:
    teacher = options.teacher
    return [
        f"{_momentum(options)}: the teacher is an average of earlier students (now"
        f" {teacher.momentum:g})"
        if teacher.momentum < 0.5
        else f"none: teacher.momentum is {teacher.momentum:g}, so the fault is in the code that"
        " updates the teacher",
        f"teacher.momentum_end=1: where it rises to (now {teacher.momentum_end:g})"
        if teacher.momentum_end < 0.5
        else "",
    ]


def _teacher_frozen(options: Options) -> list[str]:
    teacher = options.teacher
    return [
        f"{_momentum(options)}: the teacher follows the student (now {teacher.momentum:g})"
        if teacher.momentum >= 1
        else f"none: teacher.momentum is {teacher.momentum:g}, so the fault is in the code that"
        " updates the teacher",
    ]


ADVICE: dict[str, Callable[[Options], list[str]]] = {
    "uniform": _uniform,
    "point": _point,
    "dimensional": _dimensional,
    "diverging": _diverging,
    "teacher-is-student": _teacher_is_student,
    "teacher-frozen": _teacher_frozen,
}
