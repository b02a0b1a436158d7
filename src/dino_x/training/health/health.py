"""Health: what a run looks like from inside, and in words what is wrong with it.

It observes. Nothing here changes a weight, a gradient, a center or a random number: a run with it
and one without are the same bit for bit. Gradient norms are taken every step, everything else at a
*look*, every ``health.every`` steps, from a bounded number of rows and weights.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from dino_x.config.options import Options
from dino_x.exact import StepResult
from dino_x.exact.probe import NO_PROBE, StepProbe
from dino_x.model.teacher import Network
from dino_x.runs.append_only import GrowingFile, json_line
from dino_x.training.health.advice import advice
from dino_x.training.health.states import (
    AT_GUESSING,
    SMOOTHED,
    History,
    State,
    can_judge,
    diverging,
    guessing_share,
    mean_loss,
    states,
)
from dino_x.training.health.vitals import (
    feature_numbers,
    gradient_norms,
    neighbour_numbers,
    relative_distance,
    target_numbers,
    weights_by_part,
)
from dino_x.training.step.probe import Probe

OVER = 2  # looks without a state before it is said to be over: so that it does not come and go


@dataclass(frozen=True)
class Finding:
    """A line of health.jsonl: a state that began to hold, or (``resolved``) that is over.

    Attributes:
        step: when it was found.
        since: its onset.
        state: its name, see ``states.py``.
        seen: one sentence with numbers.
        help: settings as ``section.key=value: why``, most likely first.
    """

    step: int
    since: int
    state: str
    seen: str
    help: list[str]
    resolved: bool = False

    def paragraph(self) -> str:
        """The paragraph that the screen shows of a finding, once."""
        if self.resolved:
            return f"health    step {self.step}: no longer {self.state} (since step {self.since})"
        lines = [f"health    {self.state} since step {self.since}: {self.seen}."]
        for position, line in enumerate(self.help):
            lines.append(f"{'          try ' if not position else '              '}{line}")
        return "\n".join(lines)


@dataclass
class Health:
    """Watches one run.

    Attributes:
        options: resolved.
        features: of the backbone, F.
        path: health.jsonl, made at the first finding; None writes nothing.
    """

    options: Options
    features: int
    path: Path | None
    history: History = field(init=False)
    file: GrowingFile | None = field(init=False)
    active: dict[str, Finding] = field(default_factory=dict, init=False)
    found: list[State] = field(default_factory=list, init=False)
    absent: dict[str, int] = field(default_factory=dict, init=False)
    looking: bool = field(default=False, init=False)
    numbers: dict[str, float] = field(default_factory=dict, init=False)
    student_before: dict[str, Tensor] = field(default_factory=dict, init=False)
    teacher_before: dict[str, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.softmax = self.options.loss.centering == "softmax"
        self.history = History(self.features, self.options.head.prototypes, self.softmax)
        self.file = None if self.path is None else GrowingFile(self.path)

    @property
    def off(self) -> bool:
        """Whether the user turned health off."""
        return not self.options.health.every

    def probe(self, step: int) -> StepProbe:
        """The probe that gathers rows in a step, if the step is one to look at."""
        every, steps, done = self.options.health.every, self.options.train.steps, step + 1
        self.looking = not self.off and (done in (1, steps) or done % every == 0)
        if not self.looking:
            return NO_PROBE
        return Probe.of(self.options.train.effective_batch, self.options.health.rows)

    def before_update(self, result: StepResult, student: Network, teacher: Network) -> None:
        """Take numbers after a step's gradients, before any weight changes."""
        self.numbers = {}
        if self.off:
            return
        log_k = math.log(max(self.options.head.prototypes, 2))
        for term in ("dino", "ibot"):
            if term in result.terms:
                self.numbers[f"{term}_of_log_k"] = result.terms[term] / log_k
        self._add("gradient/", gradient_norms(student, self.looking))
        if not self.looking:
            return
        sample = result.probed
        assert sample is not None
        self.student_before = weights_by_part(student)
        self._add("", target_numbers(sample, teacher.dino_head.prototypes()))
        self._add("student/", feature_numbers(sample.student_features_VSF))
        self._add("teacher/", feature_numbers(sample.teacher_features_VSF))
        self._add("", neighbour_numbers(sample.student_features_VSF))
        self.numbers["patch_similarity"] = float(sample.patch_similarity_VS.mean())
        self.numbers["rows"] = float(sample.patch_similarity_VS.numel())

    def after_update(self, student: Network, teacher: Network) -> dict[str, float]:
        """Take numbers after the update; return all numbers of the step, as ``health/...``."""
        if self.looking:
            before, now, averages = (
                self.student_before, weights_by_part(student), weights_by_part(teacher),
            )  # fmt: skip
            for part, weights in now.items():
                self.numbers[f"update/{part}"] = relative_distance([weights], [before[part]])
            self.numbers["update_ratio"] = relative_distance(now.values(), before.values())
            self.numbers["teacher_distance"] = relative_distance(now.values(), averages.values())
            if self.teacher_before:
                self.numbers["teacher_moved"] = relative_distance(
                    averages.values(), self.teacher_before.values()
                )
            self.teacher_before, self.student_before = averages, {}
        return {f"health/{name}": value for name, value in self.numbers.items()}

    def judge(self, line: dict[str, Any]) -> list[Finding]:
        """Take up a finished step's line of metrics.jsonl; what is new is returned and recorded."""
        if self.off:
            return []
        looked = self.history.add(line)
        quick = diverging(self.history)
        if looked:
            self.found = states(self.history)
        else:
            self.found = [quick] if quick else []
        news = []
        for state in self.found:
            self.absent[state.name] = 0
            if state.name not in self.active:
                news.append(self._begin(int(line["step"]), state))
        if looked:
            news += self._over(int(line["step"]))
        self._record(news)
        return news

    def not_finite(self, step: int, what: str) -> None:
        """Record that step ``step``, from 1, could not be finished."""
        if not self.off:
            since = self.active["diverging"].since if "diverging" in self.active else step
            self._record([self._begin(step, State("diverging", since, what))])

    def stop(self) -> Finding | None:
        """The finding for which the run has to stop now, if it has to.

        A run that is still warming up is not stopped for not having started.
        """
        if self.options.health.on_collapse == "warn":
            return None
        for state in self.found:
            if state.name != "uniform" or not self._warming_up(self.history.steps[-1]["step"]):
                return self.active[state.name]
        return None

    def word(self) -> str:
        """A word for the progress line: ``healthy``, ``starting``, ``uniform since step 40``.

        A run in which nothing was found is ``starting`` until enough was seen to say so.
        """
        if self.off or not self.history.steps:
            return ""
        if self.active:
            finding = next(iter(self.active.values()))
            return f"{finding.state} since step {finding.since}"
        recent = list(self.history.steps)[-SMOOTHED:]
        looks = self.history.looks
        entropy = looks[-1]["health/mean_target_entropy"] if looks else None
        left = mean_loss(recent) < AT_GUESSING * guessing_share(self.softmax, entropy)
        seen = [look["step"] for look in looks]
        return "healthy" if can_judge(seen, int(recent[-1]["step"]), left) else "starting"

    def resume(self, lines: Iterable[dict[str, Any]], findings: Iterable[dict[str, Any]]) -> None:
        """Take up what a run recorded before it was stopped."""
        for line in lines:
            if "health/dino_of_log_k" in line:  # it may have been off
                self.history.add(line)
        for values in findings:
            finding = Finding(**values)
            if finding.resolved:
                self.active.pop(finding.state, None)
            else:
                self.active[finding.state] = finding

    def _begin(self, step: int, state: State) -> Finding:
        seen = state.seen
        if state.name == "uniform" and self._warming_up(step):
            seen += f"; in warmup (until step {self.options.optim.warmup}) that may still change"
        finding = Finding(step, state.since, state.name, seen, advice(state.name, self.options))
        self.active[state.name] = finding
        return finding

    def _over(self, step: int) -> list[Finding]:
        """Findings that have not held for some looks."""
        over = []
        for name in set(self.active) - {state.name for state in self.found}:
            self.absent[name] = self.absent.get(name, 0) + 1
            if self.absent[name] >= OVER:
                finding = self.active.pop(name)
                over.append(Finding(step, finding.since, name, finding.seen, [], resolved=True))
        return over

    def _warming_up(self, step: float) -> bool:
        return step < (self.options.optim.warmup or 0)

    def _record(self, findings: list[Finding]) -> None:
        if self.file is None:
            return
        for finding in findings:
            self.file.append(json_line(asdict(finding)))
        if self.file.waiting:
            self.file.flush()
        self.file.close()  # others may replace it

    def _add(self, prefix: str, numbers: dict[str, float]) -> None:
        self.numbers |= {prefix + name: value for name, value in numbers.items()}
