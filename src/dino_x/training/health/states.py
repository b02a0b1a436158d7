"""What can be wrong with a run: names and rules, as pure functions of what was recorded.

A rule takes a ``History`` of lines of metrics.jsonl and says since when its state holds, and what
was seen, or None. Thresholds are set between runs that learn and runs that were broken on purpose;
``docs/health.md`` has the numbers of both.
"""

import itertools
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Line = Mapping[str, float]

STEPS_KEPT = 400  # of single steps; the longest window below is 150
LOOKS_KEPT = 64
SMOOTHED = 20  # steps: the loss of one says little

# uniform. A run that learns may start so: the demo is within 2% of log K for its first 25 steps,
# slower ones for 100. With looks every 25 steps, 125 names it 150 steps after its onset.
UNIFORM_PATIENCE = 125
# Both are shares of what guessing costs: log K, and with softmax centering less.
SPREAD = 0.88  # entropy of a target. Sinkhorn-Knopp of one image had 0.90 to 0.99
AT_GUESSING = 0.98  # the loss. Runs that learn are below after 25 to 100 steps
LEAST_GUESS = 0.01  # of log K; where guessing costs less, all targets are one prototype
STARTING = 3.0  # standard errors by which the loss must have fallen to be no longer stuck

# point. Of targets: what they say about the image, as a share of log K, is the entropy of their
# mean less their mean entropy. Runs that learn have 0.12 or more, collapsed ones below 0.08; and in
# these the mean target is not spread over all prototypes, or the state is uniform.
SAYS_LITTLE = 0.08
ONE_PROTOTYPE = 0.2  # of log K: 2 of 64 prototypes, 9 of 65,536; a stray image does not matter then
TARGET_ROWS = 16  # of fewer images than 8, all may well have one target
FEW_PROTOTYPES = 0.7  # of log K: entropy of the mean target. Runs that learn have 0.98 and more
# Of features: DINOv3's own start is a point (LayerScale 1e-5), and one organ on one scanner looks
# much alike to any network. So it is a point only if they were apart before.
ALIKE_STD = 0.2  # a mean cosine of 0.96 between images
ALIKE_FALL = 0.5  # of the largest std so far
FEATURE_ROWS = 32  # fewer rows have no spectrum to speak of

# dimensional. A hot learning rate without KoLeo took a ViT of 32 features from 14.5 directions to
# 3.4; a lower one, which learned well, to 7.
FEW_DIRECTIONS = 0.15  # of min(rows, features): RankMe
DIRECTIONS_LOST = 1 / 3  # of the largest RankMe so far
# For point and dimensional: looks one after another, 50 steps with one every 25, and at least:
COLLAPSED_LOOKS, COLLAPSED_STEPS = 3, 20

# diverging. Untrained heads are at 1.0 to 1.4 of log K, and come down.
WRONG = 1.5  # of log K: sure of the wrong prototype
SPIKE_WINDOW, SPIKE_STEPS, SPIKE_COUNT = 100, 10, 5  # 5 of 10 steps against the 100 before
SPIKE_SPREADS = 8.0  # times the usual distance from the median, and at least:
SPIKE_LEAST = 0.25  # of log K
GRADIENT_SPIKE = 30.0  # times the median; leaving the uniform state is a factor of 10

# The teacher, from two looks.
TEACHER_LOOKS = 2
SAME = 0.01  # of an update: after it a teacher of momentum m is m updates away from the student
MOVES = 1e-7  # relative: a student that moves less does not train, and shows nothing
SHOULD_MOVE = 1e-5  # relative, since the look before: well above rounding in float32


def can_judge(looks: Sequence[float], done: int, left_guessing: bool) -> bool:
    """Whether enough was seen of a run to say that nothing is wrong with it.

    A collapse takes ``COLLAPSED_LOOKS`` looks over ``COLLAPSED_STEPS`` steps to be named. A run
    that is stuck where guessing is takes ``UNIFORM_PATIENCE`` steps, or has left it before.

    Args:
        looks: the steps that were looked at, ascending.
        done: steps that are done.
        left_guessing: whether the loss is below what guessing costs.

    >>> can_judge([1, 4], 4, True), can_judge([1, 25, 50], 50, True)
    (False, True)
    """
    if len(looks) < COLLAPSED_LOOKS or looks[-1] - looks[0] < COLLAPSED_STEPS:
        return False
    return left_guessing or done > UNIFORM_PATIENCE


def guessing_share(softmax: bool, mean_target_entropy: float | None) -> float:
    """What guessing costs, as a share of log K.

    The best guess is the mean target, and costs its entropy. Sinkhorn-Knopp uses all prototypes
    alike, so that is log K. With softmax centering it is less, from the first step on, and a loss
    below log K says nothing.

    Args:
        softmax: whether targets come from softmax centering.
        mean_target_entropy: at the latest look, as a share of log K; None if there was none.
    """
    if not softmax or mean_target_entropy is None:
        return 1.0
    return mean_target_entropy


@dataclass(frozen=True)
class State:
    """A state that holds: since which step, and one sentence of what was seen, with numbers."""

    name: str
    since: int
    seen: str


@dataclass
class History:
    """The latest lines of metrics.jsonl, and the largest values of all.

    Attributes:
        directions: min(rows, features), what RankMe can reach; 0 if nothing was looked at yet.
        prototypes: K.
        softmax: whether targets come from softmax centering.
        steps: the latest lines, each a step.
        looks: the latest lines of steps that were looked at.
        largest: of feature std and RankMe, student and teacher, over all looks.
    """

    features: int
    prototypes: int
    softmax: bool = False
    steps: deque[Line] = field(default_factory=lambda: deque(maxlen=STEPS_KEPT))
    looks: deque[Line] = field(default_factory=lambda: deque(maxlen=LOOKS_KEPT))
    largest: dict[str, float] = field(default_factory=dict)

    def add(self, line: Line) -> bool:
        """Take up one step; whether it was looked at."""
        self.steps.append(line)
        if "health/rows" not in line:
            return False
        self.looks.append(line)
        for network in ("student", "teacher"):
            for name in ("feature_std", "rankme"):
                key = f"health/{network}/{name}"
                self.largest[key] = max(self.largest.get(key, 0.0), line[key])
        return True

    def guess(self, look: Line) -> float:
        """What guessing costs by a look, as a share of log K, see ``guessing_share``."""
        return max(LEAST_GUESS, guessing_share(self.softmax, look["health/mean_target_entropy"]))

    def losses(self) -> list[tuple[int, float]]:
        """Each step with its loss, as a share of what guessing costs by the look before it."""
        if not self.looks:
            return []
        looks = deque(self.looks)
        guess, found = self.guess(looks[0]), []
        for line in self.steps:
            while looks and looks[0]["step"] <= line["step"]:
                guess = self.guess(looks.popleft())
            found.append((int(line["step"]), line["health/dino_of_log_k"] / guess))
        return found

    def since(self, holds: Callable[[Line], bool]) -> tuple[int, int]:
        """For how many looks in a row, up to the last, and since which step; (0, 0) for none."""
        count, first = 0, 0
        for look in reversed(self.looks):
            if not holds(look):
                break
            count, first = count + 1, int(look["step"])
        return count, first


def collapsed_since(history: History, holds: Callable[[Line], bool]) -> int:
    """Since when something holds, if for long enough to be no accident; else 0."""
    looks, since = history.since(holds)
    if looks < COLLAPSED_LOOKS or history.looks[-1]["step"] - since < COLLAPSED_STEPS:
        return 0
    return since


def states(history: History) -> list[State]:
    """The states that hold now, worst first. Of the three collapses only the most telling one."""
    collapses = (point(history), dimensional(history), uniform(history))
    collapse = next((state for state in collapses if state is not None), None)
    rules = (diverging(history), teacher_is_student(history), teacher_frozen(history), collapse)
    return [state for state in rules if state is not None]


def uniform(history: History) -> State | None:
    """Targets that say little about the image, and the loss where guessing is."""
    looks, since = history.since(
        lambda look: look["health/target_entropy"] >= SPREAD * history.guess(look)
    )
    if not looks:
        return None
    losses = history.losses()
    since = max(since, guessing_since(losses))
    lately = [loss for step, loss in losses if step >= since]
    if not lately or losses[-1][0] - since < UNIFORM_PATIENCE or is_starting(lately):
        return None
    return State("uniform", since, in_words(history))


def in_words(history: History) -> str:
    """What was seen of a run that guesses."""
    look, loss = history.looks[-1], mean_loss(list(history.steps)[-SMOOTHED:])
    entropy = look["health/target_entropy"]
    if history.softmax:
        return (
            f"targets say little about the image (entropy {entropy:.2f} of log K, that of their"
            f" mean {history.guess(look):.2f}) and the DINO loss stays where guessing is"
            f" ({loss:.2f} of log K)"
        )
    return (
        f"targets are spread over all {history.prototypes:,} prototypes (entropy {entropy:.2f} of"
        f" log K) and the DINO loss stays at log K ({loss:.2f} of it), where guessing is"
    )


def guessing_since(losses: Iterable[tuple[int, float]]) -> int:
    """The first step of the latest stretch in which the smoothed loss is where guessing is.

    A step beyond all of them if the last is not.

    Args:
        losses: see ``History.losses``.
    """
    recent: deque[float] = deque(maxlen=SMOOTHED)
    since, last = 0, 0
    for last, loss in losses:
        recent.append(loss)
        if statistics.fmean(recent) < AT_GUESSING:
            since = 0
        elif not since:
            since = last
    return since or last + 1


def is_starting(losses: list[float]) -> bool:
    """Whether the loss, where guessing is still, is clearly on its way down: no run that is stuck.

    Args:
        losses: of the steps, as shares of what guessing costs.
    """
    third = len(losses) // 3
    before, after = losses[:third], losses[-third:]
    error = (statistics.pvariance(before) / third + statistics.pvariance(after) / third) ** 0.5
    fall = statistics.fmean(before) - statistics.fmean(after)
    return fall > STARTING * error and fall > 0.001 and statistics.fmean(after) < 1 - 0.001


def mean_loss(lines: list[Line]) -> float:
    """The mean loss of some steps, as a share of log K."""
    return statistics.fmean(line["health/dino_of_log_k"] for line in lines)


def point(history: History) -> State | None:
    """All images alike: in the targets, which fall on few prototypes, or in the features."""

    def alike_targets(look: Line) -> bool:
        mean = look["health/mean_target_entropy"]
        says = mean - look["health/target_entropy"]
        few = mean <= ONE_PROTOTYPE or (mean <= FEW_PROTOTYPES and says <= SAYS_LITTLE)
        return look["health/rows"] >= TARGET_ROWS and few

    def alike_features(look: Line) -> bool:
        keys = [f"health/{network}/feature_std" for network in ("student", "teacher")]
        return look["health/rows"] >= FEATURE_ROWS and all(
            look[key] <= min(ALIKE_STD, ALIKE_FALL * history.largest[key]) for key in keys
        )

    since = collapsed_since(history, alike_targets)
    if since:
        used = history.looks[-1]["health/prototypes"]
        return State(
            "point",
            since,
            f"all images get nearly the same target: it uses {used:,.1f} of"
            f" {history.prototypes:,} prototypes, whatever the image",
        )
    since = collapsed_since(history, alike_features)
    if since:
        key = "health/teacher/feature_std"
        now, before = history.looks[-1][key], history.largest[key]
        return State(
            "point",
            since,
            f"all images have nearly the same features: their std is {now:.3f} (1 is spread in all"
            f" directions), it was {before:.2f}",
        )
    return None


def dimensional(history: History) -> State | None:
    """Few directions in use, and fewer than before."""
    keys = [f"health/{network}/rankme" for network in ("student", "teacher")]

    def few(look: Line) -> bool:
        possible = min(look["health/rows"], history.features)
        return look["health/rows"] >= FEATURE_ROWS and all(
            look[key] <= min(FEW_DIRECTIONS * possible, DIRECTIONS_LOST * history.largest[key])
            for key in keys
        )

    since = collapsed_since(history, few)
    if not since:
        return None
    look, before = history.looks[-1], history.largest["health/teacher/rankme"]
    possible = min(int(look["health/rows"]), history.features)
    return State(
        "dimensional",
        since,
        f"the features use {look['health/teacher/rankme']:.1f} of {possible} directions (RankMe),"
        f" they used {before:.1f}",
    )


def diverging(history: History) -> State | None:
    """The loss is far above guessing, or jumps, or the gradient does."""
    lines = list(history.steps)
    recent = lines[-SMOOTHED:]
    if len(recent) == SMOOTHED and mean_loss(recent) >= WRONG:
        above = itertools.takewhile(lambda line: line["health/dino_of_log_k"] >= 1, reversed(lines))
        since = min((line["step"] for line in above), default=recent[-1]["step"])
        return State(
            "diverging",
            int(since),
            f"the DINO loss is {mean_loss(recent):.2f} of log K, far above guessing: the student is"
            " sure of wrong prototypes",
        )
    now, before = lines[-SPIKE_STEPS:], lines[-SPIKE_STEPS - SPIKE_WINDOW : -SPIKE_STEPS]
    if len(before) < SPIKE_WINDOW:
        return None
    losses = [line["health/dino_of_log_k"] for line in before]
    usual = statistics.median(losses)
    spread = statistics.median(abs(loss - usual) for loss in losses)
    limit = usual + max(SPIKE_SPREADS * spread, SPIKE_LEAST)
    spikes = [line for line in now if line["health/dino_of_log_k"] > limit]
    if len(spikes) >= SPIKE_COUNT:
        return State(
            "diverging",
            int(spikes[0]["step"]),
            f"the DINO loss jumped from {usual:.2f} to {mean_loss(spikes):.2f} of log K",
        )
    norm = statistics.median(line["gradient_norm"] for line in before)
    spikes = [line for line in now if line["gradient_norm"] > GRADIENT_SPIKE * norm]
    if len(spikes) >= SPIKE_COUNT and mean_loss(now) > usual + spread:
        largest = max(line["gradient_norm"] for line in spikes)
        return State(
            "diverging",
            int(spikes[0]["step"]),
            f"the gradient norm jumped from {norm:.3g} to {largest:.3g} while the loss rose",
        )
    return None


def teacher_is_student(history: History) -> State | None:
    """After each update the teacher has the student's weights: there is nobody to learn from."""

    def same(look: Line) -> bool:
        update = look["health/update_ratio"]
        return update > MOVES and look["health/teacher_distance"] < SAME * update

    looks, since = history.since(same)
    if looks < TEACHER_LOOKS:
        return None
    return State(
        "teacher-is-student",
        since,
        f"the teacher has the student's weights after each update (momentum"
        f" {history.steps[-1]['teacher_momentum']:g}), so the student learns from itself",
    )


def _share_taken_up(history: History, after: float, until: float) -> float:
    """The share of the student that the teacher takes up in some steps, by its momentum."""
    steps = [line for line in history.steps if after < line["step"] <= until]
    return sum(1 - line["teacher_momentum"] for line in steps)


def teacher_frozen(history: History) -> State | None:
    """The student moves and the teacher does not, where its momentum says it should.

    A momentum that has risen to 1 at the end of a run holds the teacher still too, and should; one
    that is 1 throughout never lets it learn.
    """
    if not history.looks or history.looks[-1].get("health/teacher_moved") != 0:
        return None
    always_1 = all(line["teacher_momentum"] == 1 for line in history.steps)
    count, since = 0, 0
    for before, look in itertools.pairwise(history.looks):
        share = _share_taken_up(history, before["step"], look["step"])
        should = always_1 or share * look["health/teacher_distance"] > SHOULD_MOVE
        still = look.get("health/teacher_moved") == 0 and look["health/update_ratio"] > MOVES
        if still and should:
            count, since = count + 1, since or int(before["step"])
        else:
            count, since = 0, 0
    if count < TEACHER_LOOKS:
        return None
    distance = history.looks[-1]["health/teacher_distance"]
    return State(
        "teacher-frozen",
        since,
        f"the teacher has not moved while the student is {distance:.1%} of its weights away",
    )
