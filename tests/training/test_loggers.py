"""Loggers outside get figures and settings, no path and no name, and never end a run."""

import importlib.machinery
import json
import sys
import types

import pytest

from dino_x.config.options import Options
from dino_x.training import loggers
from tests.training.runs import metrics, pretrain

RUN = ("--effective-batch", 4, "--micro-batch", 2, "--steps", 2, "--centering", "sinkhorn")


class Fake(types.ModuleType):
    """A module in the place of a logger's, that keeps what it is given."""

    def __init__(self, name):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.sent, self.figures, self.fails = [], [], False
        self.id = self.name = "run-7"

        class Settings:
            model_fields = dict.fromkeys(["console", "x_disable_meta", "disable_git"])

            def __init__(self, **chosen):
                self.chosen = chosen

        self.Settings = Settings

    def init(self, **arguments):
        self.sent.append(arguments)
        return self

    def log(self, values, step):
        if self.fails:
            raise RuntimeError("no connection\nand more")
        self.figures.append((step, values))

    def finish(self):
        self.figures.append("finished")


@pytest.fixture(params=["wandb", "trackio"])
def fake(request, monkeypatch):
    module = Fake(request.param)
    monkeypatch.setitem(sys.modules, request.param, module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    module.key = request.param
    return module


def test_it_gets_every_step_and_a_resumed_run_goes_on_with_it(fake, films, tmp_path):
    out = tmp_path / "run"
    assert pretrain(films, out, *RUN, "--log", fake.key) == 0
    assert pretrain(films, out, "--resume", "--steps", 3) == 0
    kept = metrics(out)
    expected = [(step["step"], step["loss"]) for step in kept]
    got = [entry for entry in fake.figures if entry != "finished"]
    assert [(step, values["loss"]) for step, values in got] == expected
    assert fake.figures[-1] == "finished"
    first, second = fake.sent
    number = "id" if fake.key == "wandb" else "name"
    assert (first[number], second[number]) == (None, "run-7")
    if fake.key == "wandb":
        assert first["mode"] == "offline"
        assert first["settings"].chosen == {
            "console": "off", "x_disable_meta": True, "disable_git": True,
        }  # fmt: skip


def test_no_path_and_no_name_goes_out(fake, films, tmp_path):
    assert (
        pretrain(films, tmp_path / "doe_john", *RUN, "--labels", "folder", "--log", fake.key) == 0
    )
    sent = dict(fake.sent[0])
    sent.pop("dir", None)  # where wandb keeps its files, on this machine
    sent.pop("settings", None)
    text = json.dumps([sent, fake.figures])
    assert str(films) not in text
    assert "doe_john" not in text
    assert "/" not in json.dumps(sent)
    assert sent["config"]["optim.lr"]


def test_a_logger_that_fails_ends_and_training_continues(fake, films, tmp_path, capsys):
    fake.fails = True
    assert pretrain(films, tmp_path / "run", *RUN, "--log", fake.key) == 0
    out = capsys.readouterr().out
    line = f"{fake.key} fails and gets no more figures (no connection); training continues"
    assert out.count(line) == 1
    assert len(metrics(tmp_path / "run")) == 2


def test_what_is_not_installed_is_one_line_before_anything_is_done(films, tmp_path, capsys):
    if loggers.importlib.util.find_spec("mlflow") is not None:
        pytest.skip("mlflow is installed here")
    assert pretrain(films, tmp_path / "run", *RUN, "--log", "mlflow") == 2
    assert "report.log is 'mlflow', which is not installed: pip install mlflow" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()
    assert pretrain(films, tmp_path / "run", *RUN, "--log", "tensorbord") == 2
    assert "report.log is one of none, wandb, mlflow, trackio" in capsys.readouterr().err


def test_settings_of_weights_that_are_loaded_name_no_path():
    options = Options.model_validate({"model": {"name": "/home/anna/model"}})
    shown = loggers.settings_shown(options)
    assert shown["model.name"] == "loaded weights"
    assert not loggers.PRIVATE & shown.keys()


def test_mlflow_gets_figures_through_its_client(films, tmp_path, monkeypatch):
    """Its client adds no name of a user or a script; the real one is tried by hand."""
    made, figures = [], []

    class Client:
        def __init__(self, tracking_uri):
            made.append(tracking_uri)

        get_experiment_by_name = create_experiment = lambda self, name: None
        log_param = set_terminated = lambda self, *arguments: made.append(arguments)

        def create_run(self, experiment):
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))

        def log_batch(self, number, metrics):
            figures.extend((number, one) for one in metrics if one[0] == "loss")

    module, entities = Fake("mlflow"), Fake("mlflow.entities")
    module.MlflowClient, entities.Metric = Client, lambda *values: values
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert pretrain(films, tmp_path / "run", *RUN, "--log", "mlflow") == 0
    assert made[0] == f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}"
    assert str(films) not in repr(made)
    assert [(n, metric[3]) for n, metric in figures] == [("r1", 1), ("r1", 2)]
