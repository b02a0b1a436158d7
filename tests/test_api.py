"""DINO-X from Python: the same as the command line, without a console and without side effects."""

import inspect
import logging
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import dino_x
from dino_x.cli import main
from dino_x.config.presets import dotted
from tests.conftest import TINY
from tests.training.runs import losses


def nested(flat):
    """``section.key`` values by section."""
    sections = {}
    for name, value in flat.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    return sections


OPTIONS = nested({name: value for name, value in TINY.items() if "." in name})
SMALL = {"effective_batch": 4, "micro_batch": 2, "steps": 2, "centering": "sinkhorn"}


@pytest.fixture(scope="module")
def run(films, tmp_path_factory):
    folder = tmp_path_factory.mktemp("api") / "run"
    return dino_x.pretrain(str(films), out=folder, options=OPTIONS, **SMALL)


def test_it_trains_what_the_command_line_trains(run, films, tmp_path):
    flags = [f"--set={name}={value}" for name, value in TINY.items() if "." in name]
    flags = [part for flag in flags for part in flag.split("=", 1)]
    command = ["pretrain", "--data", str(films), "--out", str(tmp_path / "cli")]
    command += ["--effective-batch", "4", "--micro-batch", "2", "--steps", "2"]
    command += ["--centering", "sinkhorn", *flags]
    assert main(command) == 0
    assert losses(run.path) == losses(tmp_path / "cli")


def test_a_run_says_what_it_holds(run):
    assert [step["step"] for step in run.metrics()] == [1, 2]
    assert run.evaluation() is None
    page = run.report()
    assert page.is_file()
    assert str(run.path) in repr(run)
    network = run.model(device="cpu").network
    assert network.config.hidden_size == 32


def test_nothing_is_printed_unless_asked_for(films, tmp_path, capfd):
    quiet = dino_x.pretrain(films, tmp_path / "quiet", options=OPTIONS, **SMALL)
    assert capfd.readouterr() == ("", "")
    dino_x.pretrain(films, tmp_path / "loud", options=OPTIONS, verbose=True, **SMALL)
    assert "model " in capfd.readouterr().out
    quiet.resume()
    assert capfd.readouterr() == ("", "")


def test_features_are_those_of_the_evaluation(run, films):
    from dino_x.data.index.index import build_index
    from dino_x.evaluation.embed import embed

    found = dino_x.embed(run.path, films, device="cpu")
    loaded = dino_x.load(run.path, device="cpu").loaded
    rows = build_index([films], verify="headers").rows
    preparation = loaded.preparation
    expected = embed(
        loaded.model,
        rows,
        image_size=preparation.image_size,
        mean=preparation.mean,
        std=preparation.std,
    )
    np.testing.assert_allclose(found.cls, expected, rtol=1e-5, atol=1e-6)
    assert found.images == rows
    assert found.unreadable == []
    assert found.patches.shape == found.cls.shape == (len(found), 32)
    assert not np.allclose(found.patches, found.cls)


def test_index_plan_export_and_evaluate(run, films, tmp_path):
    index = dino_x.index(films, tmp_path / "films.parquet")
    assert len(dino_x.embed(run.path, index, device="cpu")) == len(
        dino_x.embed(run.path, films, device="cpu")
    )
    plan = dino_x.plan(films, model="vits16", effective_batch=64, gpu="h100", steps=10)
    assert plan.step.effective_batch == 64
    exported = dino_x.export(run.path, tmp_path / "exported", "transformers")
    assert (exported / "model.safetensors").is_file()
    result = dino_x.evaluate(run.path, films, "folder", tasks=["knn"], device="cpu")
    knn = next(iter(result["results"]["model"]["knn"].values()))
    assert 0 <= knn["balanced_accuracy"]["value"] <= 1


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda out: dino_x.pretrain("nowhere/", out), "nowhere does not exist"),
        (
            lambda out: dino_x.pretrain(".", out, options={"optim": {"lrr": 1}}),
            "unknown option 'optim.lrr'; did you mean 'optim.lr'",
        ),
        (lambda out: dino_x.pretrain(".", out, options={"lr": 1}), "expected a section"),
        (lambda out: dino_x.pretrain(".", out, effective_batch=0), "train.effective_batch"),
        (lambda out: dino_x.Run(out).metrics(), "is no run; name a folder that"),
        (lambda out: dino_x.Run(out).resume(), "is no run"),
        (lambda out: dino_x.load(out), "out"),
        (lambda out: dino_x.export(out, out / "x", "torch"), "is none of transformers, timm, onnx"),
    ],
)
def test_bad_input_is_a_user_error_with_the_words_of_the_command_line(tmp_path, work, message):
    with pytest.raises(dino_x.UserError, match=message):
        work(tmp_path / "out")


def test_every_argument_is_typed_and_explained():
    for name in ("pretrain", "evaluate", "embed", "export", "index", "plan", "load"):
        function = getattr(dino_x, name)
        signature = inspect.signature(function)
        assert all(p.annotation is not p.empty for p in signature.parameters.values()), name
        assert signature.return_annotation is not signature.empty
        assert function.__doc__
    assert set(dino_x.__all__) == set(dir(dino_x))
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        dino_x.pretrian  # noqa: B018


def python(script, cwd):
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


def test_importing_it_is_quick_and_changes_nothing(tmp_path):
    ran = python(
        """
        import logging, sys, time, warnings
        before = list(warnings.filters), logging.root.level
        started = time.perf_counter()
        import dino_x
        seconds = time.perf_counter() - started
        assert (list(warnings.filters), logging.root.level) == before
        heavy = {"torch", "transformers", "pydicom", "pydantic", "rich", "numpy"} & set(sys.modules)
        print(sorted(heavy), seconds < 1)
        """,
        tmp_path,
    )
    assert ran.stdout.strip() == "[] True", ran.stderr


def test_importing_all_of_it_changes_no_setting_of_a_library(tmp_path):
    ran = python(
        """
        import importlib, logging, pkgutil, warnings
        import matplotlib, nibabel, numpy, PIL.Image, pydicom, rich, sklearn, tifffile
        import torch, transformers, pyarrow, fsspec
        def state():
            names = ("nibabel", "pydicom", "tifffile", "transformers", "torch")
            loggers = [(logging.getLogger(n).level, logging.getLogger(n).disabled) for n in names]
            own = [f for f in warnings.filters if "pydicom" in str(f) or "PIL" in str(f)]
            return (loggers, own, pydicom.config.settings.reading_validation_mode,
                    torch.get_num_threads(), PIL.Image.MAX_IMAGE_PIXELS)
        before = state()
        import dino_x
        for module in pkgutil.walk_packages(dino_x.__path__, "dino_x."):
            if not module.name.endswith(("_format",)):
                importlib.import_module(module.name)
        print(state() == before)
        """,
        tmp_path,
    )
    assert ran.stdout.strip() == "True", ran.stderr


@pytest.mark.slow
def test_a_script_without_a_main_guard_runs_once(films, tmp_path):
    script = tmp_path / "script.py"
    flat = {**dotted(OPTIONS), "data.decode_in": "processes"}
    script.write_text(
        textwrap.dedent(
            f"""
            print("started")
            import dino_x
            from dino_x.data.index import headers
            headers.PROCESSES_FROM = 1  # so that other processes read the headers
            run = dino_x.pretrain({str(films)!r}, "run", options={nested(flat)!r}, **{SMALL!r})
            print(len(run.metrics()))
            """
        )
    )
    ran = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert ran.stdout.split() == ["started", "2"], (ran.stdout, ran.stderr)


def test_the_loggers_of_libraries_are_left_alone_by_a_run(run):
    assert not logging.getLogger("pydicom").disabled
