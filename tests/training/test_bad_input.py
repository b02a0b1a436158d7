"""Everything a user can put right is one line on stderr and status 2, and nothing is lost."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from dino_x.cli import main
from dino_x.exact import KoLeo
from tests.conftest import draw_film, tiny_settings
from tests.training.runs import metrics, pretrain, weights

QUICK = ("--effective-batch", 8, "--micro-batch", 4, "--steps", 2)


@pytest.fixture
def refused(capsys):
    """Checks that a command was refused in one line that matches."""

    def check(status, pattern):
        captured = capsys.readouterr()
        assert status == 2, captured.out
        lines = captured.err.strip().splitlines()
        assert len(lines) == 1, captured.err
        assert lines[0].startswith("dino-x: ")
        assert re.search(pattern, lines[0]), lines[0]

    return check


def test_a_missing_folder(tmp_path, refused, films):
    refused(pretrain(films.parent / "filmz", tmp_path / "run", *QUICK), "filmz does not exist")
    assert not (tmp_path / "run").exists()


def test_an_empty_folder(tmp_path, refused):
    (tmp_path / "empty").mkdir()
    refused(pretrain(tmp_path / "empty", tmp_path / "run", *QUICK), "empty")


def test_no_readable_image(tmp_path, refused):
    (tmp_path / "a.png").write_bytes(b"not a picture")
    refused(pretrain(tmp_path, tmp_path / "run", *QUICK), "no readable image among 1")


def test_no_data_at_all(tmp_path, refused):
    refused(main(["pretrain", "--out", str(tmp_path / "run")]), "--data")


def films_with_broken(folder, whole, broken):
    rng = np.random.default_rng(1)
    for number in range(whole):
        Image.fromarray(draw_film(rng)).save(folder / f"{number:02d}.png")
    for number in range(broken):
        path = folder / f"broken-{number}.png"
        path.write_bytes((folder / "00.png").read_bytes()[:-200])


def test_a_truncated_file_is_skipped_counted_and_named(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    films_with_broken(data, whole=20, broken=1)
    assert pretrain(data, tmp_path / "run", *QUICK) == 0
    assert "1 file skipped" in capsys.readouterr().out
    table = (tmp_path / "run" / "skipped.csv").read_text().splitlines()
    assert len(table) == 2
    assert "broken-0.png" in table[1]


def test_more_than_one_in_ten_unreadable(tmp_path, refused):
    data = tmp_path / "data"
    data.mkdir()
    films_with_broken(data, whole=20, broken=3)
    refused(pretrain(data, tmp_path / "run", *QUICK), "3 of 23 .* more than 1 in 10")


def test_an_effective_batch_that_does_not_divide(films, tmp_path, refused):
    status = pretrain(films, tmp_path / "run", "--effective-batch", 250, "--micro-batch", 32)
    refused(status, r"250 is not a multiple of micro-batch 32; the nearest that are: 224, 256")
    status = pretrain(films, tmp_path / "run", "--effective-batch", 8, "--micro-batch", 32)
    refused(status, r"nearest that is: 32$")


@pytest.mark.parametrize(
    ("flags", "pattern"),
    [
        (("--efective-batch", 8), "unknown option '--efective-batch'; did you mean '--effective"),
        (("--centering", "sinkhron"), "one of auto, sinkhorn, softmax.*did you mean 'sinkhorn'"),
        (("--steps", "many"), "train.steps.*'many'"),
        (("--steps", 0), "train.steps.*'0'"),
        (("--set", "optim.lrr=1"), "unknown option 'optim.lrr'; did you mean 'optim.lr'"),
        (("--set", "optim.lr"), "takes section.key=value"),
        (("--set", "optim.lr=-1"), "optim.lr: .*greater than 0.*'-1'"),
        (("--set", "views.global_scale=[0.9,0.1]"), "views.*low <= high"),
        (("--set", "views.global_size=30"), "30 is not a multiple of the patch size 8.*24, 32"),
        (("--koleo-group", 3, "--centering", "sinkhorn"), "koleo_group 3 must .* divide"),
        (("--micro-batch", "auto4"), "train.micro_batch is one of auto or a whole number.*'auto4'"),
        (("--model", "vitz16"), "'vitz16' is no known size .*did you mean 'vit.16'"),
        (("--config", "nowhere.yaml"), "cannot read nowhere.yaml"),
        (("--device", "cuda"), "no GPU"),
    ],
    ids=lambda value: str(value[-1]) if isinstance(value, tuple) else "",
)
def test_wrong_values(films, tmp_path, refused, flags, pattern, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out, settings = tmp_path / "run", tiny_settings()
    if flags[0] == "--model":
        settings = ["--set", *(s for s in settings[1:] if not s.startswith("model."))]
    if flags[0] == "--device":
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
    quick = [*map(str, QUICK)]
    status = main(
        ["pretrain", "--data", str(films), "--out", str(out), *quick, *settings, *map(str, flags)]
    )
    refused(status, pattern)
    assert not out.exists()


def test_an_effective_batch_of_one(films, tmp_path, refused):
    flags = ("--effective-batch", 1, "--micro-batch", 1, "--steps", 1)
    status = pretrain(films, tmp_path / "run", *flags, "--centering", "sinkhorn")
    refused(status, "KoLeo .* 2 or more; set loss.koleo_weight=0")
    assert pretrain(films, tmp_path / "run", *flags) == 0


def test_labels_are_checked_before_training(films, tmp_path, refused):
    status = pretrain(films, tmp_path / "run", *QUICK, "--labels", tmp_path / "labels.csv")
    refused(status, "labels.csv")
    assert not (tmp_path / "run").exists()


def test_an_unknown_option_in_a_file(films, tmp_path, refused):
    config = tmp_path / "c.yaml"
    config.write_text("optim: {learning_rate: 1}\n")
    refused(pretrain(films, tmp_path / "run", "--config", config), "unknown option 'optim.learning")
    config.write_text("optim: [1\n")
    refused(pretrain(films, tmp_path / "run", "--config", config), "is not YAML")
    config.write_text("just words\n")
    refused(pretrain(films, tmp_path / "run", "--config", config), "holds no options")


def test_a_command_that_is_not_there(refused):
    refused(main(["pretrian"]), "pretrian")


def test_an_existing_run_is_not_overwritten(films, tmp_path, refused):
    run = tmp_path / "run"
    assert pretrain(films, run, *QUICK) == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    refused(pretrain(films, run, *QUICK), "already holds a run.*--resume")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_folder_with_something_else_is_not_written_to(films, tmp_path, refused):
    (tmp_path / "thesis.txt").write_text("all of it")
    refused(pretrain(films, tmp_path, *QUICK), "not empty")


def test_a_resume_with_other_settings_names_them(films, tmp_path, refused):
    run = tmp_path / "run"
    assert pretrain(films, run, *QUICK) == 0
    status = pretrain(films, run, *QUICK, "--resume", "--seed", 3, optim__lr=0.1)
    refused(status, r"train.seed: 0 then, 3 now")
    status = pretrain(films, run, *QUICK, "--resume", optim__lr=0.1)
    refused(status, r"optim.lr: 0.004 then, 0.1 now")


def test_a_resume_of_nothing_starts_anew_and_says_so(films, tmp_path, capsys):
    assert pretrain(films, tmp_path / "run", *QUICK, "--resume") == 0
    assert "nothing to resume" in capsys.readouterr().out
    assert len(metrics(tmp_path / "run")) == 2


def test_a_resume_destroys_nothing_in_a_folder_that_is_no_run(films, tmp_path, refused):
    other = tmp_path / "other"
    (other / "checkpoints").mkdir(parents=True)
    mine = other / "checkpoints" / "step-00000001.pt"
    mine.write_bytes(b"somebody's work")
    refused(pretrain(films, other, *QUICK, "--resume"), "holds checkpoints but no config.yaml")
    assert mine.read_bytes() == b"somebody's work"
    letters = tmp_path / "letters"
    letters.mkdir()
    (letters / "model").write_text("a letter")
    refused(pretrain(films, letters, *QUICK, "--resume"), "is not empty and holds no run")
    assert [file.name for file in letters.iterdir()] == ["model"]


def test_a_start_that_was_killed_before_its_settings_is_started_anew(films, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "facts.json").write_text("{}")
    assert pretrain(films, run, *QUICK, "--resume") == 0


def test_a_resume_needs_no_settings_and_a_finished_run_stays_as_it_is(films, tmp_path):
    run = tmp_path / "run"
    assert pretrain(films, run, *QUICK) == 0
    before = weights(run, 2)
    assert main(["pretrain", "--out", str(run), "--resume"]) == 0
    assert len(metrics(run)) == 2
    for name, value in weights(run, 2).items():
        assert value.equal(before[name])


def test_a_resume_on_other_images(films, tmp_path, refused):
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    films_with_broken(data, whole=20, broken=0)
    assert pretrain(data, run, *QUICK) == 0
    (data / "03.png").unlink()
    refused(pretrain(data, run, *QUICK, "--resume"), "the images are not those")


def test_a_damaged_checkpoint(films, tmp_path, refused):
    run = tmp_path / "run"
    assert pretrain(films, run, *QUICK) == 0
    for path in (run / "checkpoints").glob("*.pt"):
        path.write_bytes(path.read_bytes()[:1000])
    refused(pretrain(films, run, *QUICK, "--resume"), "step-00000002.pt is damaged .* no other")


def test_not_a_number_stops_at_the_last_good_checkpoint(films, tmp_path, refused):
    run = tmp_path / "run"
    flags = ("--effective-batch", 8, "--micro-batch", 4, "--steps", 9, "--centering", "sinkhorn")
    status = pretrain(
        films, run, *flags, optim__lr=1e30, optim__clip=0, optim__warmup=4, checkpoint__every=1
    )
    refused(status, r"stopped at step \d+: .* last good checkpoint is .*step-\d+\.pt.*optim.lr")
    steps = [step for step in metrics(run) if "skipped" not in step]
    assert steps, "it must stop after some good steps, or the test shows little"
    good = sorted((run / "checkpoints").glob("*.pt"))[-1]
    assert good.name == f"step-{steps[-1]['step']:08d}.pt"
    for name, value in weights(run, steps[-1]["step"]).items():
        assert value.isfinite().all(), name
    assert all(np.isfinite(list(json.loads(json.dumps(step)).values())).all() for step in steps)


def test_the_term_that_is_not_a_number_is_named(films, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(KoLeo, "value", lambda self, cls, images: cls.sum() * float("nan"))
    status = pretrain(films, tmp_path / "run", *QUICK, "--centering", "sinkhorn")
    refused(status, "stopped at step 2: .*koleo is nan; no checkpoint was made yet")
