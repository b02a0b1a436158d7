"""Runs of the command for tests, in this process or in one that can be killed."""

import json
import subprocess
import sys
import time

import torch

from dino_x.cli import main
from tests.tiny import tiny_settings


def pretrain(films, out, *flags, **settings):
    """``dino-x pretrain`` in this process; its exit status."""
    arguments = ["pretrain", "--data", str(films), "--out", str(out), *map(str, flags)]
    return main([*arguments, *tiny_settings(**settings)])


def killed_after(steps, films, out, *flags, **settings):
    """Start ``dino-x pretrain`` and kill it (SIGKILL) once it has recorded ``steps`` steps."""
    arguments = ["pretrain", "--data", str(films), "--out", str(out), *map(str, flags)]
    command = [sys.executable, "-m", "dino_x.cli", *arguments, *tiny_settings(**settings)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(metrics(out)) < steps:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()


def metrics(run):
    """The whole lines of metrics.jsonl."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def losses(run):
    """What depends on the trajectory alone, step by step."""
    names = ("loss", "dino", "ibot", "koleo", "gradient_norm")
    return [[step[name] for name in names if name in step] for step in metrics(run)]


def weights(run, steps):
    """Every tensor of student, teacher, optimizer and centers after ``steps`` steps."""
    path = run / "checkpoints" / f"step-{steps:08d}.pt"
    state = torch.load(path, weights_only=True)
    tensors = {}

    def collect(prefix, value):
        if isinstance(value, torch.Tensor):
            tensors[prefix] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                collect(f"{prefix}.{key}", inner)

    collect("", state)
    return tensors
