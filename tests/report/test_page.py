"""The page: what is in it, what must not be, and that it is there whatever the run lacks."""

import json
import os
import re
import shutil
import time
from html import unescape

import numpy as np
import pytest
from PIL import Image

from dino_x.cli import main
from dino_x.report import write
from dino_x.report.write import report
from tests.report.conftest import QUICK
from tests.report.pages import check
from tests.report.runs import (
    OLD_EVALUATION,
    evaluation_of,
    figure,
    make_run,
    numbers,
    write_findings,
)
from tests.tiny import NO_PROCESSOR
from tests.training.runs import pretrain


def test_every_run_ends_with_a_page_that_is_whole(real_run, films, capsys):
    text = (real_run / "report.html").read_text()
    page = check(text)
    assert "finished after 4 steps" in page.text
    assert "trained on 28 images for 4 of 4 steps of 8 images (1.1 passes)" in page.text
    for heading in ("In short", "Evaluation", "Attention", "Nearest neighbours", "Settings"):
        assert heading in page.text
    # 6 images with two large maps, and at 4 steps; 6 of attention, 6 with 5 neighbours each
    assert len(page.all("img")) == 6 * 3 + 6 * 5 + 6 + 6 * 6 + 6 * 6  # six sections
    assert "There is no model" not in page.text
    assert not list(real_run.glob("*.partial"))


def test_no_path_and_no_file_name_is_in_it(real_run, films):
    text = (real_run / "report.html").read_text()
    assert str(films) not in text
    assert str(real_run.parent) not in text
    assert not re.search(r"\d{3}\.png", text)
    assert "1 path, not shown" in text


def test_without_images_none_is_shown_and_it_says_so(real_run, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert main(["report", str(real_run), "--no-images", "--out", str(out)]) == 0
    page = check(out.read_text())
    assert page.text.count("Images are left out of this page") == 4
    labels = [picture["alt"] for picture in page.all("img")]
    assert len(labels) == 6 * 2 + 6 * 4 + 6  # maps and attention only
    assert not any(alt.startswith("Sample") or alt == "Image 1" for alt in labels)
    assert not any("over the image" in alt for alt in labels)
    assert capsys.readouterr().out == f"written to {out}\n"


def test_attention_without_images_is_the_heat_alone():
    from dino_x.report.pictures import heat_map

    heat = np.linspace(0, 1, 16).reshape(4, 4)
    image = np.full((1, 8, 8), 90, np.uint8)
    image[0, ::2] = 200
    assert heat_map(heat, image, 1.0) != heat_map(heat, None, 1.0)
    assert heat_map(heat, None, 1.0) == heat_map(heat, None, 1.0)


def test_a_run_told_to_keep_no_images_has_none_in_its_page(films, tmp_path):
    out = tmp_path / "run"
    assert pretrain(films, out, *QUICK, report__page=True, report__images=False) == 0
    page = check((out / "report.html").read_text())
    assert "Images are left out" in page.text
    assert len(page.all("img")) == 6 * 2 + 6 * 4 + 6


def test_images_that_are_gone_cost_only_their_section(films, tmp_path):
    from shutil import copytree, rmtree

    data, out = tmp_path / "films" / "Jane Doe", tmp_path / "run"
    (tmp_path / "films" / "Jane Roe").mkdir(parents=True)  # a near name, which errors like to say
    copytree(films, data)
    assert pretrain(data, out, *QUICK) == 0
    rmtree(data)
    page = check(report(out).read_text())
    assert "The run's images are not where they were" in page.text
    assert "Jane" not in page.text
    assert (
        len(page.all("img")) == 6 * 3 + 6 * 5 + 6 + 6 * 6
    )  # maps, attention and crops need no files


def test_a_damaged_model_costs_only_its_sections(real_run, tmp_path):
    from shutil import copytree

    run = copytree(real_run, tmp_path / "Jane Doe" / "run")
    (run / "model" / "model.safetensors").write_bytes(b"half")
    page = check(report(run).read_text())
    assert page.text.count("The run's model cannot be loaded") == 2
    assert "Jane" not in page.text
    assert len(page.all("img")) == 6 * 3 + 6 * 5 + 6 * 6  # the maps and crops


def test_findings_are_told_where_they_are(full_page):
    page = check(full_page)
    assert "(1) uniform targets from step 5 to 20, then over." in page.text
    assert "(2) few directions in use since step 30: RankMe fell from 50 to 8." in page.text
    assert "Most likely to help: loss.koleo_weight=0.1: pushes features apart." in page.text
    assert "optim.lr=0.003: a higher rate" in page.text
    charts = full_page.split('<svg class="chart"')[1:]
    marked = [chart for chart in charts if 'class="mark-number"' in chart]
    assert len(marked) == len(charts)


def test_a_healthy_run_is_called_healthy(tmp_path):
    text = check(report(make_run(tmp_path / "run")).read_text()).text
    assert "No sign of a collapse or of divergence." in text
    assert "✕ problem" not in text


def test_a_run_too_short_to_judge_has_no_green_mark(tmp_path, real_run):
    page = check((real_run / "report.html").read_text()).text  # four steps
    assert "Nothing was found, but 4 steps with 2 looks are too few to call it healthy." in page
    assert ": 4 steps are too few to judge it." in page
    assert "No sign of a collapse" not in page
    early = report(make_run(tmp_path / "run", done=12)).read_text()
    assert "12 steps with 3 looks are too few" in check(early).text


def test_with_softmax_the_loss_is_compared_with_the_entropy_of_the_mean_target(tmp_path):
    """Log K is 4.16, the mean target has 0.9 of it, 3.74; the loss ends at 3.14."""
    words = "The DINO loss is 3.14, and guessing costs the entropy of the mean target = 3.74"
    softmax = report(make_run(tmp_path / "a", loss__centering="softmax")).read_text()
    assert f"{words}: the run has left it." in check(softmax).text
    assert "guessing 3.74" in check(softmax).text.replace("guessing stays at 3.74", "guessing 3.74")
    sinkhorn = report(make_run(tmp_path / "b", loss__centering="sinkhorn")).read_text()
    assert "guessing costs log K = 4.16: the run has left it." in check(sinkhorn).text
    run = make_run(tmp_path / "c", loss__centering="softmax")
    text = (run / "metrics.jsonl").read_text().replace(
        '"health/mean_target_entropy": 0.9', '"health/mean_target_entropy": 0.72'
    )  # fmt: skip
    (run / "metrics.jsonl").write_text(text)
    assert "= 2.99: it has not left it yet" in check(report(run).read_text()).text


def test_without_health_it_says_so(tmp_path):
    text = check(report(make_run(tmp_path / "run", health=False)).read_text()).text
    assert "Health was not measured in this run." in text


def test_evaluation_has_values_intervals_and_baselines(full_page):
    page = check(full_page)
    for words in (
        "this model", "random weights", "raw pixels", "0.850 (0.830 to 0.870)",
        "Tested on 100 images of 31 patients (50 ill, 50 well), split as given.",
        "The model beats raw pixels by 0.050.", "a warning <b>with</b> marks",
    ):  # fmt: skip
        assert words in page.text, words
    assert "jane" not in full_page
    assert "other" in page.text  # the last part of a folder's name
    assert "<b>" not in full_page


def test_an_older_evaluation_is_read(tmp_path):
    text = check(report(make_run(tmp_path / "run", evaluation=OLD_EVALUATION)).read_text()).text
    assert "Nearest neighbours (kNN), k = 20: balanced accuracy 0.750" in text
    assert "0.250 above random weights and is 0.030 below raw pixels" in text


def test_an_evaluation_of_other_values_is_one_line(tmp_path, capsys):
    evaluation = evaluation_of(0.9)
    evaluation["results"]["model"]["knn"]["20"]["balanced_accuracy"]["value"] = "high"
    run = make_run(tmp_path / "run", evaluation=evaluation)
    assert main(["report", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "evaluation.json holds something else than an evaluation" in line


def test_facts_of_other_values_are_left_out(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "facts.json").write_text('{"images": "many", "device": 7}')
    assert "images that were not counted" in check(report(run).read_text()).text


def test_without_an_evaluation_it_says_what_makes_one(tmp_path):
    text = check(report(make_run(tmp_path / "run")).read_text()).text
    assert "dino-x evaluate --model RUN" in text
    assert "a loss does not say whether a model is any good" in text


def test_a_run_that_has_just_begun(tmp_path):
    text = check(report(make_run(tmp_path / "run", done=0)).read_text()).text
    assert "no step is finished yet" in text
    assert "Curves are here once" in text
    assert "There is no model yet" in text


def test_a_run_that_goes_on_or_was_stopped(tmp_path):
    run = make_run(tmp_path / "run", done=17)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 18, "lo')  # being written
    assert "training, 17 of 40 steps" in check(report(run).read_text()).text
    old = time.time() - 3600
    os.utime(run / "metrics.jsonl", (old, old))
    assert "stopped after 17 of 40 steps" in check(report(run).read_text()).text


def test_one_step_makes_a_page(tmp_path):
    check(report(make_run(tmp_path / "run", done=1)).read_text())


def test_text_from_files_is_text(tmp_path):
    evil = '<script>alert("1")</script>'
    result = evaluation_of(0.85)
    result["counts"]["test"] = {evil: 3}
    result["results"][evil] = result["results"]["random"]
    run = make_run(tmp_path / "run <i>&", evaluation=result)
    write_findings(run)
    text = report(run).read_text()
    check(text)
    assert evil in check(text).text


def test_long_runs_make_small_pages(tmp_path):
    import json

    run = make_run(tmp_path / "run", done=0, train__steps=5_000)
    lines = [json.dumps(numbers(step, True)) for step in range(1, 5_001)]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    assert report(run).stat().st_size < 300_000


@pytest.mark.skipif(NO_PROCESSOR, reason="its image processors need torchvision")
def test_the_code_in_the_page_runs(real_run, films, tmp_path, monkeypatch, capsys):
    """As somebody would who copies it: beside the page, with one of the images."""
    page = (real_run / "report.html").read_text()
    code = next(c for c in re.findall(r"<code>(.*?)</code>", page, re.S) if "AutoModel" in c)
    (tmp_path / "model").symlink_to(real_run / "model")
    Image.open(next(films.rglob("*.png"))).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(unescape(code), "page", "exec"), {})
    assert capsys.readouterr().out.strip() == "torch.Size([32]) torch.Size([16, 32])"


def test_a_page_that_fails_never_fails_the_run(films, tmp_path, capsys, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no pictures today\nand a second line")

    monkeypatch.setattr(write, "galleries", broken)
    out = tmp_path / "run"
    assert pretrain(films, out, *QUICK, report__page=True) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if "no report was written" in line]
    assert len(lines) == 1
    assert "RuntimeError: no pictures today" in lines[0]
    assert not (out / "report.html").exists()


@pytest.mark.parametrize(
    ("make", "arguments", "pattern"),
    [
        (lambda folder: None, ["report", "{}/none"], "none is not there"),
        (lambda folder: None, ["report", "{}"], "holds no run: there is no config.yaml"),
        (make_run, ["report", "{}/run", "--out", "{}/no/page.html"], "cannot write .*page.html"),
        (make_run, ["report", "{}/run", "--out", "{}"], "is a folder; name another file"),
        (make_run, ["compare", "{}/run"], "takes 2 to 6 runs, got 1"),
        (make_run, ["compare", "{}/run", "{}/none"], "none is not there"),
        (make_run, ["compare", "{}/run", "{}/run", "--out", "{}/no/c.html"], "cannot write"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(make, arguments, pattern, tmp_path, capsys):
    make(tmp_path / "run") if make is make_run else None
    assert main([argument.replace("{}", str(tmp_path)) for argument in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert re.search(pattern, lines[0]), lines[0]


def test_an_evaluation_goes_into_the_run_and_its_page_is_made_anew(
    real_run, films, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    shutil.copytree(real_run, run)
    before = (run / "report.html").read_text()
    monkeypatch.chdir(tmp_path)
    rows = [f"{file},{n % 2},{n}" for n, file in enumerate(sorted(films.rglob("*.png")))]
    (tmp_path / "parity.csv").write_text("\n".join(["path,label,patient", *rows]))
    command = ["evaluate", "--model", run, "--data", films, "--labels", tmp_path / "parity.csv",
               "--tasks", "knn"]  # fmt: skip
    assert main([str(word) for word in command]) == 0
    said = capsys.readouterr().out
    assert json.loads((run / "evaluation.json").read_text())["settings"]["labels"] == "parity.csv"
    former = json.loads((run / "evaluation-1.json").read_text())
    assert former["settings"]["labels"] == "folder"
    assert f"report    {run / 'report.html'}" in said
    assert not (tmp_path / "evaluation.json").exists()
    now = (run / "report.html").read_text()
    assert "Linear probe" in before
    assert "Linear probe" not in now


def test_an_evaluation_with_details_shows_each_class_and_the_units(tmp_path):
    class_of = {"recall": figure(0.9), "precision": figure(0.8), "specificity": figure(0.7),
                "auroc": figure(0.95), "images": 50}  # fmt: skip
    curve = {"false_positive_rate": [0, 0.25, 1], "true_positive_rate": [0, 0.75, 1]}
    evaluation = evaluation_of(0.85)
    evaluation["details"] = {"knn": {
        "confusion": [[45, 5], [20, 30]],
        "classes": {"ill": class_of, "well": class_of | {"precision": None}},
        "roc": {"ill": curve, "well": curve},
    }}  # fmt: skip
    of_patients = {name: {"knn": {"20": {"balanced_accuracy": figure(0.99)}}}
                   for name in ("model", "random")}  # fmt: skip
    evaluation["units"] = {"patient": {
        "count": 31, "mixed": 2, "results": of_patients, "verdicts": {"knn": {}},
    }}  # fmt: skip
    page = check(report(make_run(tmp_path / "run", evaluation=evaluation)).read_text())
    for words in (
        "Each class by the model, kNN", "taken for well", "45 90%", "20 40%", "never answered",
        "AUROC: well 0.950", "patient 31 0.990 (0.970 to 1.010)",
        "2 patients have images of different classes and are left out.",
    ):  # fmt: skip
        assert words in page.text, words
