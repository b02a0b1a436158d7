"""``dino-x evaluate``: a model in several tasks, beside what its metrics must be compared with."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dino_x.data.image import ImageRef
from dino_x.data.index.index import Index, build_index
from dino_x.data.index.labels import Labelled, load_labels
from dino_x.data.index.listed import LEFT_OUT
from dino_x.data.loading.neighbours import neighbours
from dino_x.errors import UserError
from dino_x.evaluation import record
from dino_x.evaluation.baselines import pixel_encoder
from dino_x.evaluation.bootstrap import CONFIDENCE, DRAWS, draw_patients
from dino_x.evaluation.classify import Classification, Metrics
from dino_x.evaluation.contenders import MODEL, PIXELS, RANDOM, Contender, load_contenders
from dino_x.evaluation.embed import (
    FEATURES,
    Encoder,
    ImagePreparation,
    Progress,
    backbone_encoder,
    encode,
    read_out_of,
)
from dino_x.evaluation.masks import Masked, has_masks, load_masks
from dino_x.evaluation.near_copies import warn_of_near_copies
from dino_x.evaluation.other_targets import TASKS as OTHER_TASKS
from dino_x.evaluation.other_targets import OtherTargets
from dino_x.evaluation.patches import GRID, patch_encoder, pixel_patch_encoder
from dino_x.evaluation.seen import seen_images, warn_of_seen, warn_of_unknown
from dino_x.evaluation.segmentation import MEAN, metrics_of_overlap, segment
from dino_x.evaluation.tasks import choose_tasks, refuse_tasks
from dino_x.evaluation.units import score_units, units_of
from dino_x.evaluation.verdict import title_of_model, verdict
from dino_x.evaluation.work import Work
from dino_x.evaluation.worth import worth
from dino_x.machine.device import choose_device
from dino_x.runs.folder import kinds_taken, reading_of, run_of
from dino_x.runs.trained_on import kept_split

KS = (10, 20, 50)


@dataclass
class Outcome:
    """The results so far.

    Attributes:
        results: metrics by name, task, setting and metric.
        described: how each task was done, for the JSON.
        main: the setting of each task that its verdict is about.
        metric: the name of the one that verdicts on labels are about.
        left_out: the number of files that were not used, by reason.
        warnings: sentences for the user.
        details: of the model by task: the confusion matrix, each class, its ROC curve.
        units: metrics of volumes, slides and patients, see units.py.
    """

    results: dict[str, dict[str, Metrics]]
    described: dict[str, Any] = field(default_factory=dict)
    main: dict[str, str] = field(default_factory=dict)
    metric: str = "balanced_accuracy"
    left_out: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    units: dict[str, Any] = field(default_factory=dict)

    def leave_out(self, reason: str, count: int) -> None:
        """Note that some files were not used."""
        if count:
            self.left_out[reason] = count

    def verdicts(self) -> dict[str, Any]:
        """The verdict of each task, by task."""
        verdicts = {}
        for task, setting in self.main.items():
            metric = "dice" if task == "segmentation" else self.metric
            metrics = {name: of[task][setting][metric] for name, of in self.results.items()}
            verdicts[task] = verdict(metrics, setting, metric)
        return verdicts


def refuse_values(features: str, ks: Sequence[int], batch_size: int) -> None:
    """Refuse arguments of ``evaluate`` that mean nothing. Raises: UserError."""
    if features not in FEATURES:
        raise UserError(f"features '{features}' is none of: {', '.join(FEATURES)}")
    for what, value in (("k", min(ks)), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{what} {value} is less than 1")


@dataclass(frozen=True)
class Execution:
    """Where and how networks are run."""

    device: str
    precision: str
    batch_size: int
    seed: int
    preparation: ImagePreparation
    features: str


def evaluate(
    model: str | Path,
    data_paths: Sequence[str | Path],
    labels: str | Path | None = None,
    *,
    label_column: str = "label",
    masks: str | Path | None = None,
    index: str | Path | None = None,
    where: str | None = None,
    tasks: Sequence[str] | None = None,
    against: Sequence[str] = (),
    features: str = "cls",
    ks: Sequence[int] = KS,
    device: str = "auto",
    precision: str = "fp32",
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """A model's features in several tasks, beside random weights, raw pixels and other models.

    Args:
        model: a run, a folder as transformers saves models, or a name on the hub.
        data_paths: files and folders of images.
        labels: ``folder``, ``column`` or a CSV file, see ``load_labels``; None for masks only.
        label_column: the column of the CSV file that holds the class.
        masks: a CSV file or a folder, see ``masks.load_masks``; by default the labels' own file if
            it has a column ``mask``.
        index: an index of the data, whose files are not opened again to be listed.
        where: a condition on the images; see ``conditions.select``.
        tasks: of ``TASKS``; by default all that labels and masks allow.
        against: other models.
        features: of ``FEATURES``: the CLS token, or CLS and the mean patch side by side; the same
            for every network.
        ks: numbers of neighbours; each is capped at the number of references.
        device: auto, cpu, cuda or mps.
        precision: fp32, bf16 or fp64.
        batch_size: images that go through a network together.
        seed: of the random weights and of everything drawn.
        progress: told (work done, work in all) as it goes.

    Returns:
        What JSON can hold: ``model``, ``settings``, ``counts`` (images by split and class; {}
        without labels), ``targets`` (several labels or numbers, or None), ``patients`` (how many by
        split, or None), ``masks`` (the same for images
        with a mask, or None), ``seen`` (how many tested images a run was trained on, by name),
        ``left_out`` (by reason), ``results`` (``value``, ``low`` and ``high`` by name, task,
        setting and metric), ``details`` (each class, see details.py), ``units`` (volumes, slides
        and patients, see units.py), ``verdicts`` (by task), ``worth`` (see worth.py) and
        ``warnings``. No file and no patient is named in it.

    Raises:
        UserError: for a model, data, labels or masks that cannot be used; before any long work.
    """
    refuse_values(features, ks, batch_size)
    if masks is None and has_masks(labels):
        masks = labels
    chosen = choose_tasks(tasks, labels is not None, masks is not None)
    folders = [Path(path) for path in data_paths]
    found = build_index(
        folders,
        verify="headers",
        reading=reading_of(model),
        kept_in=Path(index) if index else None,
        where=where,
        take=kinds_taken(model),
    )
    labelled, masked = None, None
    if labels is not None and chosen != ["segmentation"]:
        labelled = load_labels(
            labels,
            found.rows,
            data_paths,
            label_column=label_column,
            with_val=True,
            kept=kept_split(run_of(model)),
        )
    if masks is not None and "segmentation" in chosen:
        masked = load_masks(masks, labels, found.rows, data_paths, kept_split(run_of(model)))
    contenders, warnings = load_contenders(
        model, against, device=device, precision=precision, seed=seed
    )
    preparation = contenders[MODEL].preparation
    if labelled is not None and preparation.slices == 3:
        labelled = without_uneven(labelled, found.rows)
    images = ImagePreparation(preparation.windows, found.rows)
    how = Execution(choose_device(device).type, precision, batch_size, seed, images, features)
    patch_encoders = {}
    if masked is not None:
        patch_encoders = patch_encoders_of(contenders, how)

    work = Work(progress, labelled, masked)
    done = Outcome({name: {} for name in names_of(contenders)}, warnings=warnings)
    leave_out_files(found, done)
    settings: dict[str, Any] = {
        "labels": record.file_name(labels),
        "label_column": label_column,
        "masks": None,
        "split_by": None,
        "tested_split": None,
        "features": features,
        "image_size": preparation.image_size,
        "mean": list(preparation.mean),
        "std": list(preparation.std),
        "device": how.device,
        "precision": precision,
        "batch_size": batch_size,
        "seed": seed,
        "bootstrap_draws": DRAWS,
        "confidence": CONFIDENCE,
    }
    on_images: dict[str, Any] = {"counts": {}, "targets": None, "patients": None, "masks": None}
    if labelled is not None:
        refuse_tasks(chosen, tasks, labelled)
        labelled = classify(labelled, contenders, chosen, ks, how, done, work)
        settings |= {"split_by": labelled.split_by, "tested_split": labelled.tested}
        on_images |= {"counts": record.counts(labelled), "patients": record.patients(labelled)}
        on_images["targets"] = record.targets(labelled)
    if masked is not None:
        score_masks(masked, patch_encoders, how, done, work)
        settings["masks"] = record.file_name(masks)
        on_images["masks"] = record.masks(masked)
    seen = seen_images(model, against, tested_images(labelled, masked))
    done.warnings[:0] = warn_of_seen(seen, {name: title_of_model(name) for name in seen})
    done.warnings += warn_of_unknown(seen, model, against)
    return {
        "model": str(model),
        "settings": {"tasks": list(done.main), **settings, **done.described},
        **on_images,
        "seen": seen,
        "left_out": done.left_out,
        "results": record.results(done.results),
        "details": done.details,
        "units": done.units,
        "verdicts": (verdicts := done.verdicts()),
        "worth": worth(verdicts, seen),
        "warnings": done.warnings,
    }


def leave_out_files(found: Index, done: Outcome) -> None:
    """Note the files that cannot be read, and the images that are no plain view of anatomy."""
    unreadable = [skip for skip in found.skipped if not skip.reason.startswith(LEFT_OUT)]
    done.leave_out("files that cannot be read", len(unreadable))
    for kind, count in found.left_out.items():
        done.leave_out(f"{kind} images", count)


def tested_images(labelled: Labelled | None, masked: Masked | None) -> list[ImageRef]:
    """The images that are tested in any task, each once."""
    tested: list[ImageRef] = []
    if labelled is not None:
        tested += [ref for ref, test in zip(labelled.refs, labelled.is_test, strict=True) if test]
    if masked is not None:
        tested += [
            ref for ref, side in zip(masked.refs, masked.side, strict=True) if side == "test"
        ]
    return list(dict.fromkeys(tested))


def without_uneven(labelled: Labelled, rows: Sequence[ImageRef]) -> Labelled:
    """The labelled images without the slices of volumes that 2.5D cannot use."""
    refused = {rows[row] for row in neighbours(rows).refused}
    usable = np.array([ref not in refused for ref in labelled.refs])
    if usable.all():
        return labelled
    return labelled.keep(usable, "slices of volumes that 2.5D cannot use")


def names_of(contenders: dict[str, Contender]) -> list[str]:
    """All names in the order of the results: pixels, which are no network, are third."""
    names = list(contenders)
    after = names.index(RANDOM) + 1
    return [*names[:after], PIXELS, *names[after:]]


def classify(
    labelled: Labelled,
    contenders: dict[str, Contender],
    chosen: Sequence[str],
    ks: Sequence[int],
    how: Execution,
    done: Outcome,
    work: Work,
) -> Labelled:
    """Adds the tasks on classes to the results; returns the images that could be decoded."""
    encoders = {
        name: backbone_encoder(
            contender.network,
            image_size=contender.preparation.image_size,
            mean=contender.preparation.mean,
            std=contender.preparation.std,
            device=how.device,
            precision=how.precision,
            slices=contender.preparation.slices,
            grey=contender.preparation.grey,
            read_out=read_out_of(contender.network, how.features),
        )
        for name, contender in contenders.items()
    } | {PIXELS: pixel_encoder()}
    features, unreadable = encode(
        encoders, labelled.refs, batch_size=how.batch_size, progress=work.part("classes"),
        seeing=how.preparation,
    )  # fmt: skip
    if unreadable:
        readable = np.ones(len(labelled.refs), dtype=bool)
        readable[unreadable] = False
        labelled = labelled.keep(readable, "images that cannot be decoded")
    done.warnings += warn_of_near_copies(features[PIXELS], labelled.is_test)
    scorer: Classification | OtherTargets
    tasks = [task.replace("-", "_") for task in chosen if task != "segmentation"]
    if labelled.targets is None:
        scorer = Classification(labelled, how.seed, ks)
    else:
        scorer = OtherTargets(labelled, labelled.targets, how.seed, ks)
        done.metric = scorer.metric
        tasks = [task for task in tasks if task in OTHER_TASKS]
    told, scored = work.part("scores"), 0
    for name, tasks_of in done.results.items():
        for task in tasks:
            tasks_of[task] = scorer.score(task, name, features[name])
            scored += 1
            told(scored, len(done.results) * len(tasks))
    for task in tasks:
        done.described[task] = scorer.described(task)
        done.main[task] = scorer.main_setting(task, done.results[MODEL][task])
    done.details = {task: scorer.details(task) for task in scorer.scores}
    done.units, unscored = score_units(scorer, units_of(labelled), done.main, done.metric)
    for reason, count in labelled.left_out.items():
        done.leave_out(reason, count)
    done.warnings += labelled.warnings + scorer.thin_classes() + unscored
    if "few_shot" in tasks:
        done.warnings += scorer.warnings
    return labelled


def patch_encoders_of(contenders: dict[str, Contender], how: Execution) -> dict[str, Encoder]:
    """The encoders of patches, of each network and of the pixels.

    Raises:
        UserError: for a network without patches.
    """
    encoders = {
        name: patch_encoder(
            name,
            contender.network,
            contender.preparation,
            device=how.device,
            precision=how.precision,
        )
        for name, contender in contenders.items()
    }
    return encoders | {PIXELS: pixel_patch_encoder()}


def score_masks(
    masked: Masked,
    encoders: dict[str, Encoder],
    how: Execution,
    done: Outcome,
    work: Work,
) -> None:
    """Adds the segmentation to the results."""
    found = segment(
        {name: encoders[name] for name in done.results},
        masked,
        seed=how.seed,
        batch_size=max(1, how.batch_size // 4),  # hundreds of patches an image
        progress=work.part("masks"),
        preparation=how.preparation,
    )
    draws = draw_patients(masked.patients[found.rows], how.seed)
    for name, tasks_of in done.results.items():
        tasks_of["segmentation"] = metrics_of_overlap(
            masked.names, {"dice": found.dice[name], "iou": found.iou[name]}, draws
        )
    done.described["segmentation"] = {
        "grid": GRID,
        "image_sizes": {name: encoders[name].image_size for name in done.results},
        "chosen_c": found.chosen,
        "validation": masked.validation,
        "by": "volume" if found.whole_volumes else "image",
        "scored": len(found.rows),
    }
    done.main["segmentation"] = MEAN
    for reason, count in masked.left_out.items():
        done.leave_out(reason, count)
    done.leave_out("images with a mask that cannot be decoded", found.unreadable)
    done.warnings += masked.warnings
