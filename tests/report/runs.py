"""RUN folders made by hand, small and with whatever a test needs in them."""

import json
import math
from pathlib import Path

import yaml

from dino_x.config.resolve import Facts, resolve

STEPS, PROTOTYPES = 40, 64


def make_run(
    folder: Path, *, done: int = STEPS, health: bool = True, evaluation=None, **overrides
) -> Path:
    """A run of 40 steps with plausible numbers, ``done`` of them recorded."""
    folder.mkdir(parents=True)
    settings = {
        "preset": "small", "data.paths": [str(folder / "Jane Doe")], "head.prototypes": PROTOTYPES,
        "train.steps": STEPS, "train.effective_batch": 16, "train.micro_batch": 4,
    } | {name.replace("__", "."): value for name, value in overrides.items()}  # fmt: skip
    options = resolve(settings, Facts(1234)).options
    text = yaml.safe_dump(options.model_dump(mode="json"), sort_keys=False)
    (folder / "config.yaml").write_text(f"# images: 1,234\n# device: CPU, 1 thread\n{text}")
    lines = [json.dumps(numbers(step, health)) for step in range(1, done + 1)]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def numbers(step: int, health: bool) -> dict[str, float]:
    """One line of metrics.jsonl."""
    left = math.exp(-step / 20)
    found = {
        "step": step, "images": 16 * step, "dino": 3 + left, "ibot": 2.5 + left, "koleo": left,
        "loss": 5 + 2 * left, "lr": 0.001, "gradient_norm": 1 + left, "images_per_second": 8.0,
        "memory_gib": 0.5, "teacher_momentum": 0.99, "weight_decay": 0.04,
        "teacher_temperature": 0.05,
    }  # fmt: skip
    if health:
        found |= {"health/dino_of_log_k": found["dino"] / math.log(PROTOTYPES)}
    if health and (step == 1 or step % 5 == 0):
        found |= {
            "health/target_entropy": 0.5, "health/mean_target_entropy": 0.9,
            "health/student/rankme": 20.0 + step, "health/teacher/rankme": 19.0 + step,
            "health/update_ratio": 0.001, "online/knn_balanced_accuracy": 0.5 + step / 100,
        }  # fmt: skip
    return found


FINDINGS = [
    {"step": 12, "since": 5, "state": "uniform", "seen": "the loss is at log K", "resolved": False,
     "help": ["teacher.temperature=0.03: sharper targets", "optim.lr=0.003: a higher rate"]},
    {"step": 20, "since": 5, "state": "uniform", "seen": "it has left log K", "help": [],
     "resolved": True},
    {"step": 35, "since": 30, "state": "dimensional", "seen": "RankMe fell from 50 to 8.",
     "help": ["loss.koleo_weight=0.1: pushes features apart."], "resolved": False},
]  # fmt: skip


def write_findings(run: Path) -> None:
    """A state that came and went, and one that stays."""
    (run / "health.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in FINDINGS))


def figure(value: float, half: float = 0.02) -> dict[str, float]:
    """A figure with its interval."""
    return {"value": value, "low": value - half, "high": value + half}


def evaluation_of(model: float, *, images: int = 100) -> dict:
    """evaluation.json of a model with this balanced accuracy, in two tasks."""
    values = {"model": model, "random": 0.6, "pixels": 0.8, "/home/jane/other": 0.7}
    results = {}
    for name, value in values.items():
        both = {"balanced_accuracy": figure(value), "auroc": figure(value)}
        linear = {"balanced_accuracy": figure(value + 0.01), "auroc": figure(value)}
        results[name] = {"knn": {"10": both, "20": both}, "linear": {"all": linear}}
    gain = {name: figure(model - value, 0.03) for name, value in values.items() if name != "model"}
    return {
        "model": "/home/jane/runs/one",
        "settings": {"labels": "labels.csv", "split_by": "given", "tested_split": "test"},
        "counts": {
            "train": {"ill": 40, "well": 60}, "test": {"ill": images // 2, "well": images // 2},
        },
        "patients": {"train": 50, "test": 31},
        "left_out": {},
        "results": results,
        "verdicts": {
            "knn": {
                "setting": "20", "metric": "balanced_accuracy", "baseline": "pixels",
                "differences": gain, "sentence": f"the model beats raw pixels by {model - 0.8:.3f}",
            }
        },
        "warnings": ["a warning <b>with</b> marks"],
    }  # fmt: skip


OLD_EVALUATION = {
    "model": "x",
    "settings": {"k": 20},
    "results": {
        "model": {"balanced_accuracy": 0.75, "auroc": 0.8, "k": 20},
        "random": {"balanced_accuracy": 0.5, "auroc": 0.5, "k": 20},
        "pixels": {"balanced_accuracy": 0.78, "auroc": 0.9, "k": 20},
    },
}
