"""The run in plain words: what was trained on what, whether it is healthy, and what it is worth."""

import math
from dataclasses import dataclass
from typing import Literal

from dino_x.config.model_sizes import SIZES
from dino_x.report import scores
from dino_x.report.plots import figure
from dino_x.report.run_data import RunData
from dino_x.training.report import duration

Mark = Literal["good", "watch", "problem", "note"]
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

    mark: Mark
    text: str


@dataclass(frozen=True)
class Tile:
    """A number that one wants to see first."""

    value: str
    label: str


def state_of(run: RunData) -> Sentence:
    """Where the run is."""
    if run.finished:
        return Sentence("good", f"finished after {run.done:,} steps")
    of = f"{run.done:,} of {run.steps:,} steps" if run.steps else f"{run.done:,} steps"
    if not run.done:
        return Sentence("note", "no step is finished yet")
    if run.going_on:
        return Sentence("note", f"training, {of}")
    return Sentence("watch", f"stopped after {of}: pretrain --resume goes on")


def training(run: RunData) -> list[Sentence]:
    """What was trained on what, for how long, and where the loss is."""
    settings = run.settings
    batch = int(settings.get("train.effective_batch") or 0)
    images = f"{run.images:,} images" if run.images else "images that were not counted"
    parts = [f"{model_of(run)}, trained on {images}"]
    if run.done and batch:
        passes = f" ({run.done * batch / run.images:.1f} passes)" if run.images else ""
        parts.append(f"for {run.done:,} of {run.steps:,} steps of {batch:,} images{passes}")
    took = f" in {duration(run.seconds)}" if run.seconds else ""
    where = ", ".join(
        str(x) for x in (run.facts.get("device"), settings.get("train.precision")) if x
    )
    sentences = [Sentence("note", f"{' '.join(parts)}{took}{f'; {where}' if where else ''}.")]
    if run.skipped:
        sentences.append(
            Sentence("watch", f"{run.skipped:,} files could not be read: see skipped.csv.")
        )
    return sentences + loss_against_guessing(run)


def model_of(run: RunData) -> str:
    """``vit-tiny (4 layers of 128)``; a path is not named."""
    settings = run.settings
    name = str(settings.get("model.name", "a model"))
    if name not in SIZES:
        return f"{scores.title_of(name)}, continued"
    width, depth, *_ = SIZES[name]
    width, depth = settings.get("model.width") or width, settings.get("model.depth") or depth
    return f"{name} ({depth} layers of {width})"


def loss_against_guessing(run: RunData) -> list[Sentence]:
    """Whether the loss has left log K, which is what guessing costs."""
    dino, prototypes = run.curves.get("dino"), run.settings.get("head.prototypes")
    if dino is None or not prototypes:
        return []
    guessing = math.log(prototypes)
    where = f"The DINO loss is {figure(dino.last)}, and guessing costs log K = {figure(guessing)}"
    if dino.last < 0.98 * guessing:
        return [Sentence("good", f"{where}: the run has left it.")]
    late = run.done >= 0.1 * run.steps and run.findings is None  # else health knows better
    hint = "; lower temperatures or a higher rate may help" if late else ""
    return [Sentence("watch", f"{where}: it has not left it yet{hint}.")]


def health(run: RunData) -> list[Sentence]:
    """What health found, by number as in the curves."""
    if run.findings is None:
        return [Sentence("note", "Health was not measured in this run.")]
    if not run.findings:
        if not run.done:
            return [Sentence("note", "Nothing to judge yet.")]
        return [Sentence("good", "No sign of a collapse or of divergence.")]
    sentences = []
    for i, finding in enumerate(run.findings, start=1):
        name = STATES.get(finding.state, finding.state)
        if finding.until is None:
            helps = f" Most likely to help: {finding.help[0]}." if finding.help else ""
            seen = f"({i}) {name} since step {finding.since:,}: {finding.seen}.{helps}"
            sentences.append(Sentence("problem", seen))
        else:
            sentences.append(
                Sentence(
                    "watch",
                    f"({i}) {name} from step {finding.since:,} to {finding.until:,}, then over.",
                )
            )
    return sentences


def worth(run: RunData) -> list[Sentence]:
    """What the evaluation says against the baselines."""
    if run.evaluation is None:
        return [Sentence("note", "Not evaluated: a loss does not say whether a model is any good.")]
    sentences = []
    for comparison in scores.headlines(run.evaluation):
        model = comparison.scores[scores.MODEL]
        others = [name for name in BASELINES if name in comparison.scores]
        beats = [scores.better(run.evaluation, comparison, name) for name in others]
        mark: Mark = "good" if beats and all(beats) else "watch"
        if not any(beat is not None for beat in beats):  # no intervals: only a plain loss is sure
            worse = any(comparison.scores[name].value >= model.value for name in others)
            mark = "watch" if worse else "note"
        sentence = scores.sentence(run.evaluation, comparison)
        sentences.append(
            Sentence(mark, f"{comparison.title} {model.text}. {capitalised(sentence)}.")
        )
    return sentences


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
    dino, prototypes = run.curves.get("dino"), run.settings.get("head.prototypes")
    if dino is not None and prototypes:
        found.append(Tile(figure(dino.last), f"DINO loss; log K is {figure(math.log(prototypes))}"))
    if run.evaluation is not None:
        first = scores.headlines(run.evaluation)[0]
        score = first.scores[scores.MODEL]
        metric = scores.METRICS.get(first.metric, first.metric)
        between = "" if score.low is None else f" ({score.low:.3f} to {score.high:.3f})"
        task = scores.SHORT.get(first.task, first.task)
        found.append(Tile(f"{score.value:.3f}", f"{task}, {metric}{between}"))
    return found
