"""Does it learn? A ViT-S on chest films for some minutes, judged by patient beside baselines.

Twice for the same time: exact over the effective batch, and in micro-batches of 8 with naive
accumulation, as other tools do it: targets, KoLeo and centers of each micro-batch by itself.
"""

import csv
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.batch_scope import Arm, gradients
from benchmarks.gpu_parts.card import Card
from benchmarks.gpu_parts.results import Results
from dino_x.config.options import Options
from dino_x.config.resolve import Facts, resolve
from dino_x.data.canvas.canvas import CanvasForm, Crop, canvas_side
from dino_x.data.index.index import Index, build_index
from dino_x.data.index.labels import load_labels
from dino_x.data.loading.loader import Loader
from dino_x.demo import demo_folder
from dino_x.evaluation.suite import evaluate
from dino_x.machine.device import dtype_of
from dino_x.model.backbone import save_vit
from dino_x.training.optimizer import set_values
from dino_x.training.schedules import values_at
from dino_x.training.step.batch_plan import Cutter
from dino_x.training.steps import Steps
from tests.tiny import TINY

NAIVE = 8  # images of a micro-batch
JUDGING = {True: 0.3, False: 0.25}  # share of the time that is left for reading and judging
MOST_JUDGING = 90.0  # seconds
TRIED = 3  # steps, to know how many there is time for
TOY_FILMS = 96
CACHE = 2**33  # bytes of decoded films
TASKS = ("knn", "linear")


@dataclass(frozen=True)
class Films:
    """Labelled films.

    Attributes:
        folder: of the images and of ``manifest.csv``.
        title: of the films.
        training: those of the training patients.
    """

    folder: Path
    title: str
    training: Index

    @property
    def labels(self) -> Path:
        """The table of labels."""
        return self.folder / "manifest.csv"


def measure(card: Card, results: Results, more: dict[str, str]) -> None:
    """Both ways of training, then one evaluation of both beside random weights and pixels."""
    with tempfile.TemporaryDirectory(prefix="dino-x-gpu-") as place:
        films = films_of(card, more.get("data"), Path(place))
        settings = settings_of(card)
        seconds = (results.left - min(MOST_JUDGING, JUDGING[card.toy] * results.left)) / 2
        models: dict[str, Path] = {}
        for name, micro in (("exact", None), ("naive", NAIVE)):
            models[name] = Path(place) / name
            train(card, results, films, settings, name, micro, seconds, models[name])
        judge(card, results, films, models)


def films_of(card: Card, data: str | None, place: Path) -> Films:
    """The films of ``--data``, or those in the package; at toy size a few of them."""
    folder, title = demo_folder(), "the demo's films"
    if data:
        folder, title = Path(data), Path(data).name
    if card.toy:
        folder = few_of(folder, place / "films")
        title = f"{TOY_FILMS} of {title}"
    index = build_index([images_in(folder)], verify="headers")
    labelled = load_labels(folder / "manifest.csv", index.rows, [folder])
    rows = [ref for ref, train in zip(labelled.refs, labelled.is_train, strict=True) if train]
    return Films(folder, title, Index(rows))


def images_in(folder: Path) -> Path:
    """The folder with the images themselves."""
    return next((folder / name for name in ("images", "films") if (folder / name).is_dir()), folder)


def few_of(folder: Path, to: Path) -> Path:
    """A copy of some films with their labels, of both splits and classes."""
    with (folder / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = []
    for split, count in (("train", TOY_FILMS * 2 // 3), ("test", TOY_FILMS // 3)):
        for label in sorted({row["label"] for row in rows}):
            fit = [row for row in rows if row["split"] == split and row["label"] == label]
            chosen += fit[: count // 2]
    for row in chosen:
        (to / row["path"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / row["path"], to / row["path"])
    with (to / "manifest.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(chosen[0]))
        table.writeheader()
        table.writerows(chosen)
    return to


def settings_of(card: Card) -> dict[str, Any]:
    """The options of both runs: the small preset, which is for so few images."""
    common = {"preset": "small", "loss.centering": "sinkhorn", "loss.floor": 1, "loss.queue": 0}
    if card.toy:
        tiny = {n: v for n, v in TINY.items() if n.split(".")[0] in ("model", "head", "views")}
        return common | tiny | {"train.effective_batch": 16}
    precision = "bf16" if card.has_bf16 else "fp32"
    return common | {
        "model.name": "vits16", "train.effective_batch": 256, "train.precision": precision,
    }  # fmt: skip


def train(
    card: Card, results: Results, films: Films, settings: dict[str, Any], name: str,
    micro: int | None, seconds: float, to: Path,
) -> None:  # fmt: skip
    """Train for some seconds, on a schedule that ends then, and save the teacher."""
    batch = settings["train.effective_batch"]
    more = {
        "train.micro_batch": micro or max(1, batch // 2),
        "loss.koleo_group": micro or "effective",
        "train.steps": 10,
    }
    arm = Arm(batch, "sinkhorn", micro or batch, micro or batch)
    options = resolve(settings | more, Facts(len(films.training))).options
    workers = os.cpu_count() or 1
    form = form_of(films, options)
    with Loader(films.training, form, cache_bytes=CACHE, workers=workers) as source:
        _, tried = run(card, films, options, arm, source, TRIED)
        count = max(TRIED + 1, int((seconds - tried) / (tried / TRIED)))
        whole = resolve(settings | more | {"train.steps": count}, Facts(len(films.training)))
        steps, took = run(card, films, whole.options, arm, source, count)
    backbone = steps.teacher.backbone
    state = backbone.vit.state_dict()
    size = options.views.global_size
    network = type(backbone.vit)(backbone.vit.config)
    save_vit(state, network, to, size, backbone.mean, backbone.std)
    results.found(
        f"training on {films.title}, {title_of(name)}",
        f"{count:,} steps of {batch} images in {took:.0f} s, {count * batch / took:,.3g} images/s",
        steps=count, seconds=took, batch=batch,
    )  # fmt: skip


def title_of(name: str) -> str:
    """The way of training in words."""
    if name == "exact":
        return "exact over the effective batch"
    return f"naive accumulation, micro-batches of {NAIVE}"


def form_of(films: Films, options: Options) -> CanvasForm:
    """How the films are kept: as large as they are, at most as large as crops need."""
    views = options.views
    crops = [Crop(views.global_size, views.global_scale[0])]
    crops.append(Crop(views.local_size, views.local_scale[0]))
    return CanvasForm(canvas_side(films.training, crops), 1)


def run(
    card: Card, films: Films, options: Options, arm: Arm, source: Loader, count: int
) -> tuple[Steps, float]:
    """Some steps, and the seconds that they took without the first, which loads libraries."""
    cutter = Cutter(options, [0.5] * 3, [0.25] * 3, card.device, dtype_of(options.train.precision))
    steps = Steps(options, source, len(films.training), cutter)
    started = time.perf_counter()
    for step in range(count):
        if step == 1 and count == TRIED:
            card.synchronize()
            started = time.perf_counter()
        values = values_at(step, options)
        set_values(steps.state.optimizer, steps.student, values)
        result = gradients(arm, steps, step, values)
        steps.update(step, result, values)
        steps.state.done = step + 1
    card.synchronize()
    took = time.perf_counter() - started
    return steps, took * TRIED / (TRIED - 1) if count == TRIED else took


def judge(card: Card, results: Results, films: Films, models: dict[str, Path]) -> None:
    """kNN and linear probe by patient, beside random weights and raw pixels."""
    found = evaluate(
        models["exact"], [images_in(films.folder)], films.labels, tasks=TASKS,
        against=[str(models["naive"])], device=card.device.type,
    )  # fmt: skip
    names = {"model": title_of("exact"), "random": "random weights", "pixels": "raw pixels"}
    for task in TASKS:
        setting = found["verdicts"][task]["setting"]
        scores = {name: of[task][setting]["balanced_accuracy"] for name, of in
                  found["results"].items()}  # fmt: skip
        pixels = scores["pixels"]["value"]
        for name, score in scores.items():
            title = names.get(name, title_of("naive"))
            beats = None if card.toy or name != "model" else score["value"] > pixels
            results.found(
                f"balanced accuracy on the tested patients, {task}: {title}",
                f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})",
                f"> {pixels:.3f}, raw pixels" if name == "model" else "", beats, **score,
            )  # fmt: skip
