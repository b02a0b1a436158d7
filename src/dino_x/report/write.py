"""``dino-x report``: from a RUN folder to its page."""

import contextlib
from pathlib import Path

from rich.console import Console

from dino_x.errors import UserError
from dino_x.files import parse_json, read_text
from dino_x.model.pretrained import OWN_PROCESSOR
from dino_x.report import curves, settings, tables, verdict
from dino_x.report.class_details import class_details, unit_table
from dino_x.report.galleries import galleries
from dino_x.report.page import ReportPage, render, write_page
from dino_x.report.run_data import RunData, read_run
from dino_x.runs.folder import RunFolder
from dino_x.runs.model_folder import bring_up

PATIENT_SECONDS = 120.0  # for the sample's images where somebody asked for the page
QUICK_SECONDS = 15.0  # at the end of a run

SNIPPET = """import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

folder = "model"  # beside this page; or its full path
processor = AutoImageProcessor.from_pretrained(folder)
backbone = AutoModel.from_pretrained(folder).eval()

image = Image.open("image.png").convert("RGB")
with torch.no_grad():
    output = backbone(**processor(image, return_tensors="pt"))
feature = output.pooler_output[0]  # one vector an image: for kNN, probes, retrieval
registers = backbone.config.num_register_tokens
patches = output.last_hidden_state[0, 1 + registers :]  # one a patch: for segmentation
print(feature.shape, patches.shape)
"""

# For images that are no 8-bit pictures: their windows, and neighbours in 2.5D, are ours to prepare.
OWN_SNIPPET = """import dino_x

model = dino_x.load("model")  # beside this page; or its full path
found = model.embed("FOLDER OF IMAGES")  # prepared as in training; 16 bits, CT and 2.5D rightly
print(found.cls.shape, found.patches.shape)  # one vector an image; the mean of its patches
print(found.images[0].path)  # what the first row is of
"""


def report(
    path: Path,
    out: Path | None = None,
    *,
    images: bool = True,
    quick: bool = False,
    refresh: int | None = None,
) -> Path:
    """Write the page about a run, from its files alone; the run may still be training.

    Args:
        path: the RUN folder.
        out: the file; None for ``RUN/report.html``.
        images: False leaves the user's images out, as ``report.images=false`` of the run does.
        quick: spend seconds, not minutes, on images that are slow to read.
        refresh: after so many seconds an open page loads itself anew; None for a page that stays.

    Returns: the file.

    Raises: UserError if there is no run, or the file cannot be written.
    """
    with contextlib.suppress(UserError):  # the page then says that the model is behind
        bring_up(RunFolder(path))
    run = read_run(path)
    images = images and run.settings.get("report.images") is not False
    seconds = QUICK_SECONDS if quick else PATIENT_SECONDS
    out = out or path / "report.html"
    text = render("report.html", page=page_of(run, images, seconds, refresh))
    write_page(text, out)
    return out


def page_of(run: RunData, images: bool, seconds: float, refresh: int | None = None) -> ReportPage:
    """Everything the page says.

    Args:
        run: the run.
        images: whether the user's images may be in the page.
        seconds: for the sample's images.
        refresh: after so many seconds an open page loads itself anew; None for a page that stays.
    """
    shown = galleries(run, images, seconds)
    first, more = tables.evaluation_tables(run.evaluation) if run.evaluation else ([], [])
    findings = run.findings or []
    return ReportPage(
        name=run.name,
        state=verdict.state_of(run),
        tiles=verdict.tiles(run),
        training=verdict.training(run),
        health=verdict.health(run),
        worth=verdict.worth(run),
        changed=settings.differing_from_preset(run.settings, run.images),
        settings=settings.all_settings(run.settings),
        preset=str(run.settings.get("preset", "auto")),
        loss=curves.drawn(curves.LOSS, run, "loss"),
        online=curves.drawn(curves.ONLINE, run, "online"),
        health_charts=curves.drawn(curves.HEALTH, run, "health"),
        more_health=curves.drawn(curves.MORE_HEALTH, run, "more"),
        health_measured=run.findings is not None,
        schedules=curves.drawn(curves.SCHEDULES, run, "schedules"),
        findings=[
            (i, verdict.STATES.get(finding.state, finding.state), finding)
            for i, finding in enumerate(findings, start=1)
        ],
        evaluation=first,
        more_evaluation=more,
        tested_on=tables.tested_on(run.evaluation) if run.evaluation else "",
        warnings=[str(text) for text in (run.evaluation or {}).get("warnings", [])],
        seen=shown.seen,
        first_last=shown.first_last,
        maps=shown.maps,
        attention=shown.attention,
        neighbours=shown.neighbours,
        feature_maps=shown.feature_maps,
        details=class_details(run.evaluation) if run.evaluation else [],
        units=unit_table(run.evaluation) if run.evaluation else None,
        refresh=refresh,
        has_model=run.model_step is not None,
        snippet=snippet_of(run),
        images_shown=images,
    )


def snippet_of(run: RunData) -> str:
    """The code that gets features of the images that a run was trained on."""
    try:
        stated = parse_json(read_text(run.path / "model" / "preprocessor_config.json"))
        own = stated.get("image_processor_type") == OWN_PROCESSOR
        channels = len(stated.get("image_mean", [0, 0, 0]))
    except (OSError, ValueError, AttributeError, TypeError):
        return SNIPPET
    if own:
        return OWN_SNIPPET
    return SNIPPET.replace('convert("RGB")', 'convert("L")') if channels == 1 else SNIPPET


def report_at_end(path: Path, console: Console) -> None:
    """The page at the end of a run. Whatever goes wrong is one line: the run itself is done."""
    try:
        out = report(path, quick=True)
    except Exception as error:  # a picture that fails must not look like a run that failed
        what = (str(error).strip().splitlines() or [""])[0]
        console.print(
            f"warning   no report was written ({type(error).__name__}: {what}); the run is whole,"
            f" and `dino-x report {path}` tries again",
            style="yellow", highlight=False, soft_wrap=True, markup=False,
        )  # fmt: skip
    else:
        console.print(f"report    {out}", highlight=False, soft_wrap=True, markup=False)


def report_again(evaluation: Path, console: Console) -> None:
    """Make the page of a run anew after its evaluation was written into the run.

    A file elsewhere is of no run, and a run with ``report.page=false`` gets no page.
    """
    run = RunFolder(evaluation.parent)
    if run.evaluation != evaluation or not run.exists:
        return
    if run.settings().get("report.page") is not False:
        report_at_end(run.path, console)
