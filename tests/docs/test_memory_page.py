"""The calculated memory of docs/memory.md is what is calculated now."""

import re

import pytest
import torch

from benchmarks import plan_memory
from dino_x.config.resolve import Facts, resolve
from dino_x.cost.memory import Numerics, still_needed
from dino_x.cost.shapes import Step
from dino_x.model.backbone import build_backbone
from dino_x.planning.measure import made_up, trial_steps
from tests.docs.pages import DOCS

CPU = torch.device("cpu")
ROW = re.compile(r"^\| (fp32|bf16) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|", re.MULTILINE)
ROWS = ROW.findall((DOCS / "memory.md").read_text(encoding="utf-8"))


def test_the_table_has_its_rows():
    assert [row[:2] for row in ROWS] == [(p, m) for p in ("fp32", "bf16") for m in ("2", "8")]


@pytest.mark.parametrize(("precision", "size", "calculated", "asked"), ROWS)
def test_the_calculated_memory_on_the_page_is_right(precision, size, calculated, asked):
    overrides = plan_memory.SAID | {"train.micro_batch": int(size), "train.precision": precision}
    options = resolve(overrides, Facts(100)).options
    backbone = build_backbone(options.model, options.views.global_size, 0)
    canvas = plan_memory.CANVAS
    steps = trial_steps(options, backbone, made_up(int(size), 1, canvas), 100, CPU)
    step = Step.of(options, steps.student, micro_batch=int(size), canvas=canvas)
    found = still_needed(step, Numerics.on(precision, CPU)) / plan_memory.GIB
    assert found == pytest.approx(float(calculated), abs=0.0006)
    assert found == pytest.approx(float(asked), rel=0.1)  # the page's promise
