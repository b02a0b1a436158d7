"""The run in plain words: what was trained on what, whether it is healthy, and what it is worth."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from dino_x.config.model_sizes import SIZES
from dino_x.progress import duration
from dino_x.report import scores
from dino_x.report.plots import three_digits
from dino_x.report.run_data import Finding, RunData
from dino_x.runs.environment import in_a_line
from dino_x.runs.folder import ENVIRONMENT
from dino_x.training.health.states import AT_GUESSING, SMOOTHED, can_judge

Judgement = Literal["good", "watch", "problem", "note"]
BASELINES = ("random", "pixels", "start")  # what a model has to beat to be worth anything
STATES = {
    "uniform": "uniform targets",
    "point": "collapsed to a point",
    "dimensional": "few directions in use",
    "diverging": "diverging",
    "teacher-is-student": "the teacher is the student",
    "teacher-frozen": "the teacher stands still",
}


@dataclass(frozen=True)
class Sentence:
    """Something that is said, and how it is meant: the word stands beside it."""

    mark: Judgement
    text: str


@dataclass(frozen=True)
class Tile:
    """A number that one wants to see first."""

    value: str
    label: str


def state_of(run: RunData) -> Sentence:
    """Where the run is."""
    if run.done and run.facts.get("stopped_early") == run.done:
        return Sentence(
            "good", f"ended early after {run.done:,} steps: the online evaluation rose no more"
        )
    if run.unsaved:
        model = "there is no model"
        if run.model_step is not None:
            model = f"the model is of step {run.model_step:,}"
        return Sentence(
            "watch", f"all {run.done:,} steps are done, but {model}: pretrain --resume writes it"
        )
    if run.finished:
        return Sentence("good", f"finished after {run.done:,} steps")
    if not run.done:
        return Sentence("note", "no step is finished yet")
    steps = f"{run.done:,} of {run.steps:,} steps" if run.steps else f"{run.done:,} steps"
    if run.is_training:
        return Sentence("note", f"training, {steps}")
    return Sentence("watch", f"stopped after {steps}: pretrain --resume continues it")


def training(run: RunData) -> list[Sentence]:
    """What was trained on what, for how long, and where the loss is."""
    images = f"{run.images:,} images" if run.images else "images that were not counted"
    what = f"{model_of(run)}, trained on {images}{duration_of(run)}"
    where = [run.facts.get("device"), run.settings.get("train.precision")]
    known = ", ".join(str(name) for name in where if name)
    place = f"; {known}" if known else ""
    sentences = [Sentence("note", f"{what}{place}.")]
    started_with = in_a_line(run.path / ENVIRONMENT)
    if started_with:
        sentences.append(Sentence("note", f"Started with {started_with}."))
    if run.skipped:
        unread = f"{run.skipped:,} files could not be read: see skipped.csv."
        sentences.append(Sentence("watch", unread))
    return sentences + loss_against_guessing(run)


def duration_of(run: RunData) -> str:
    """`` for 40 of 40 steps of 16 images (0.5 passes) in 80 s``, as far as it is known."""
    batch = int(run.settings.get("train.effective_batch") or 0)
    took = f" in {duration(run.seconds)}" if run.seconds else ""
    if not run.done or not batch:
        return took
    passes = f" ({run.done * batch / run.images:.1f} passes)" if run.images else ""
    return f" for {run.done:,} of {run.steps:,} steps of {batch:,} images{passes}{took}"


def model_of(run: RunData) -> str:
    """``vit-tiny (4 layers of 128)``; a path is not named."""
    settings = run.settings
    name = str(settings.get("model.name", "a model"))
    if name not in SIZES:
        return f"{scores.title_of(name)}, continued"
    width, depth, *_ = SIZES[name]
    width = settings.get("model.width") or width
    depth = settings.get("model.depth") or depth
    return f"{name} ({depth} layers of {width})"


@dataclass(frozen=True)
class Guessing:
    """What a loss costs that says nothing about the image: its value, and what it is called."""

    value: float
    name: str

    def has_left(self, run: RunData) -> bool:
        """Whether the DINO loss, smoothed, is below it."""
        dino = run.curves.get("dino")
        return dino is not None and float(dino.values[-SMOOTHED:].mean()) < AT_GUESSING * self.value


def guessing_of(run: RunData) -> Guessing | None:
    """What guessing costs in a run; None if it is not known.

    Log K with Sinkhorn-Knopp, which uses all prototypes alike. With softmax centering the entropy
    of the mean target at the latest look, which is less from the first step on.
    """
    prototypes = run.settings.get("head.prototypes")
    if not prototypes:
        return None
    entropy = run.curves.get("health/mean_target_entropy")
    if run.settings.get("loss.centering") == "softmax" and entropy is not None:
        return Guessing(entropy.last * math.log(prototypes), "the entropy of the mean target")
    return Guessing(math.log(prototypes), "log K")


def loss_against_guessing(run: RunData) -> list[Sentence]:
    """Whether the loss has left what guessing costs."""
    dino, guessing = run.curves.get("dino"), guessing_of(run)
    if dino is None or guessing is None:
        return []
    where = (
        f"The DINO loss is {three_digits(dino.last)}, and guessing costs {guessing.name} ="
        f" {three_digits(guessing.value)}"
    )
    if run.done < SMOOTHED:
        return [Sentence("note", f"{where}: {run.done:,} steps are too few to judge it.")]
    if guessing.has_left(run):
        return [Sentence("good", f"{where}: the run has left it.")]
    late = run.done >= 0.1 * run.steps and run.findings is None  # else health knows better
    hint = "; lower temperatures or a higher rate may help" if late else ""
    return [Sentence("watch", f"{where}: it has not left it yet{hint}.")]


def health(run: RunData) -> list[Sentence]:
    """What health found, by number as in the curves."""
    if run.findings is None:
        return [Sentence("note", "Health was not measured in this run.")]
    if run.findings:
        return [state_found(i, finding) for i, finding in enumerate(run.findings, start=1)]
    if not run.done:
        return [Sentence("note", "Nothing to judge yet.")]
    looked = run.curves.get("health/target_entropy")
    looks = [] if looked is None else [float(step) for step in looked.steps]
    guessing = guessing_of(run)
    left = guessing is not None and guessing.has_left(run)
    if not can_judge(looks, run.done, left):
        seen = f"{run.done:,} steps with {len(looks):,} looks"
        return [Sentence("note", f"Nothing was found, but {seen} are too few to call it healthy.")]
    return [Sentence("good", "No sign of a collapse or of divergence.")]


def state_found(number: int, finding: Finding) -> Sentence:
    """A state that lasts, with what may help, or one that is over."""
    name = STATES.get(finding.state, finding.state)
    since = f"({number}) {name}"
    if finding.until is not None:
        over = f"{since} from step {finding.since:,} to {finding.until:,}, then over."
        return Sentence("watch", over)
    helps = f" Most likely to help: {finding.help[0]}." if finding.help else ""
    return Sentence("problem", f"{since} since step {finding.since:,}: {finding.seen}.{helps}")


def worth(run: RunData) -> list[Sentence]:
    """What the evaluation says against the baselines."""
    if run.evaluation is None:
        return [Sentence("note", "Not evaluated: a loss does not say whether a model is any good.")]
    sentences = answer(run.evaluation)
    for comparison in scores.headlines(run.evaluation):
        model = comparison.scores[scores.MODEL]
        text = capitalised(scores.sentence(run.evaluation, comparison))
        judgement = judged(run.evaluation, comparison)
        sentences.append(Sentence(judgement, f"{comparison.title} {model.text}. {text}."))
    return sentences


def answer(evaluation: dict[str, Any]) -> list[Sentence]:
    """Whether it was worth it, in one line; none in files of older versions."""
    found = evaluation.get("worth")
    if not isinstance(found, dict) or "sentence" not in found:
        return []
    marks: dict[str, Judgement] = {"yes": "good", "no": "watch"}
    return [Sentence(marks.get(str(found.get("answer")), "note"), str(found["sentence"]))]


def judged(evaluation: dict[str, Any], comparison: scores.Comparison) -> Judgement:
    """Whether a model beats its baselines: good, to be watched, or not to be told."""
    model = comparison.scores[scores.MODEL]
    baselines = [name for name in BASELINES if name in comparison.scores]
    beats = [scores.better(evaluation, comparison, name) for name in baselines]
    if any(beat is not None for beat in beats):
        return "good" if all(beats) else "watch"
    # Without intervals only a plain loss is sure.
    worse = any(comparison.scores[name].value >= model.value for name in baselines)
    return "watch" if worse else "note"


def capitalised(text: str) -> str:
    """With a capital at its beginning and the rest as it is."""
    return text[:1].upper() + text[1:]


def tiles(run: RunData) -> list[Tile]:
    """At most four numbers for the top of the page."""
    found = []
    if run.images:
        found.append(Tile(f"{run.images:,}", "images"))
    if run.steps:
        found.append(Tile(f"{run.done:,}", f"of {run.steps:,} steps"))
    dino, guessing = run.curves.get("dino"), guessing_of(run)
    if dino is not None and guessing is not None:
        costs = f"DINO loss; guessing costs {three_digits(guessing.value)}"
        found.append(Tile(three_digits(dino.last), costs))
    if run.evaluation is not None:
        found.append(score_tile(scores.headlines(run.evaluation)[0]))
    return found


def score_tile(comparison: scores.Comparison) -> Tile:
    """The model's score in one task, with its interval in the label."""
    score = comparison.scores[scores.MODEL]
    metric = scores.METRICS.get(comparison.metric, comparison.metric)
    task = scores.SHORT.get(comparison.task, comparison.task)
    return Tile(f"{score.value:.3f}", f"{task}, {metric} {score.between}".rstrip())
