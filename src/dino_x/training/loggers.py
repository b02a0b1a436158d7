"""Loggers outside, off by default: wandb, MLflow, trackio. They get figures and settings alone.

No path, no name of RUN, no host, no value of a header and no image goes to them, and nothing leaves
the machine unless the user has told the logger so, by its own variables: wandb is offline unless
WANDB_MODE says otherwise, MLflow writes into RUN unless MLFLOW_TRACKING_URI is set, trackio is
local unless TRACKIO_SPACE_ID is set. An error of a logger ends it with a line, and no run.
"""

import importlib
import importlib.util
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from dino_x.config.model_sizes import is_size
from dino_x.config.options import Options
from dino_x.config.presets import dotted
from dino_x.errors import UserError
from dino_x.files import read_json, write_json
from dino_x.runs.folder import RunFolder

PROJECT = "dino-x"
REASON = 200  # characters of an error that are said
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
# Options that hold paths, or words of the user about the data.
PRIVATE = {
    "data.paths", "data.labels", "data.label_column", "data.index", "data.cache", "data.where",
    "gram.teacher", "teacher.model",
}  # fmt: skip


class Logger(Protocol):
    """What takes the figures of a run."""

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Take the figures of a step, which counts from 1."""

    def close(self) -> None:
        """Let go of it."""


class NoLogger:
    """Takes nothing."""

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def check_logger(name: str) -> None:
    """Refuse a logger that is not installed. Raises: UserError."""
    if name != "none" and importlib.util.find_spec(PACKAGES[name]) is None:
        raise UserError(
            f"report.log is '{name}', which is not installed: pip install {PACKAGES[name]}, or"
            " leave --log out"
        )


def open_logger(options: Options, run: RunFolder, say: Callable[[str], None]) -> Logger:
    """The logger of a run; a resumed run goes on with the same one.

    Args:
        options: of the run.
        run: where its number is kept, and what is local.
        say: told once if the logger fails.
    """
    name = options.report.log
    if name == "none":
        return NoLogger()
    openers: dict[str, Callable[[Mapping[str, Any], RunFolder], Logger]] = {
        "wandb": Wandb,
        "mlflow": Mlflow,
        "trackio": Trackio,
    }
    return Careful(name, lambda: openers[name](settings_shown(options), run), say)


def settings_shown(options: Options) -> dict[str, Any]:
    """The settings of a run without paths and without words about the data."""
    found = dotted(options.model_dump(mode="json"))
    shown = {name: value for name, value in found.items() if name not in PRIVATE}
    if not is_size(str(shown["model.name"])):
        shown["model.name"] = "loaded weights"
    return shown


class Careful:
    """A logger whose errors end it, and not the run.

    Args:
        name: of the logger.
        opening: opens it.
        say: told once what went wrong.
    """

    def __init__(
        self, name: str, opening: Callable[[], Logger], say: Callable[[str], None]
    ) -> None:
        self.name, self.say = name, say
        self.logger: Logger = NoLogger()
        self._attempt(lambda: setattr(self, "logger", opening()))

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Take the figures of a step that are numbers."""
        finite = {
            name: value
            for name, value in values.items()
            if name != "step" and isinstance(value, int | float) and math.isfinite(value)
        }
        self._attempt(lambda: self.logger.step(step, finite))

    def close(self) -> None:
        """Close it."""
        self._attempt(self.logger.close)

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # loggers have no common class of errors
            self.logger = NoLogger()
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            line = f"{self.name} fails and gets no more figures ({reason[:REASON]})"
            self.say(f"{line}; training continues")


def number_of(run: RunFolder, name: str) -> str | None:
    """The number that a logger gave to a run at its first start."""
    if not run.logged.is_file():
        return None
    try:
        found = read_json(run.logged)
    except UserError:
        return None
    return found.get(name) if isinstance(found, dict) else None


class Wandb:
    """Weights & Biases, offline in RUN unless WANDB_MODE is set. See ``Logger``."""

    def __init__(self, settings: Mapping[str, Any], run: RunFolder) -> None:
        wandb = importlib.import_module("wandb")
        known = wandb.Settings.model_fields
        quiet = {
            "console": "off", "silent": True, "disable_git": True, "save_code": False,
            "disable_code": True, "x_disable_meta": True, "x_disable_machine_info": True,
            "x_disable_stats": True, "host": "", "program": "", "root_dir": str(run.path),
        }  # fmt: skip
        self.run = wandb.init(
            project=PROJECT,
            mode=os.environ.get("WANDB_MODE", "offline"),
            dir=str(run.path),
            id=number_of(run, "wandb"),
            resume="allow",
            config=dict(settings),
            settings=wandb.Settings(**{k: v for k, v in quiet.items() if k in known}),
        )
        write_json(run.logged, {"wandb": self.run.id})

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Take the figures of a step."""
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


class Mlflow:
    """MLflow, in RUN/mlflow.db unless MLFLOW_TRACKING_URI is set. See ``Logger``.

    Runs are made by its client, which adds no name of a user or a script.
    """

    def __init__(self, settings: Mapping[str, Any], run: RunFolder) -> None:
        mlflow = importlib.import_module("mlflow")
        local = f"sqlite:///{(run.path / 'mlflow.db').absolute()}"
        place = os.environ.get("MLFLOW_TRACKING_URI") or local
        self.client = mlflow.MlflowClient(tracking_uri=place)
        self.metric = importlib.import_module("mlflow.entities").Metric
        number = number_of(run, "mlflow")
        if number is None:
            experiment = self.client.get_experiment_by_name(PROJECT)
            key = experiment.experiment_id if experiment else self.client.create_experiment(PROJECT)
            number = self.client.create_run(key).info.run_id
            for name, value in settings.items():
                self.client.log_param(number, name, str(value)[:500])
            write_json(run.logged, {"mlflow": number})
        self.number: str = number

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Take the figures of a step."""
        now = time.time_ns() // 10**6
        metrics = [self.metric(name, float(value), now, step) for name, value in values.items()]
        self.client.log_batch(self.number, metrics)

    def close(self) -> None:
        """Mark the run as ended."""
        self.client.set_terminated(self.number)


class Trackio:
    """trackio, in its local folder unless TRACKIO_SPACE_ID is set. See ``Logger``."""

    def __init__(self, settings: Mapping[str, Any], run: RunFolder) -> None:
        self.trackio = importlib.import_module("trackio")
        number = number_of(run, "trackio")
        self.run = self.trackio.init(
            project=PROJECT,
            name=number,
            resume="allow",
            config=dict(settings),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        write_json(run.logged, {"trackio": self.run.name})

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Take the figures of a step."""
        self.trackio.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self.trackio.finish()
