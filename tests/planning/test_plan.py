"""`dino-x plan` as a user types it: with data or without, for this machine or for a GPU."""

import json
import re
from dataclasses import replace

import pytest

from dino_x.cli import main
from dino_x.cost.gpus import ASSUMED, GPUS, gpu_of
from dino_x.planning import measure
from tests.conftest import tiny_settings

QUICK = ("--effective-batch", "16", "--no-measure")
VITS = ("--model", "vits16", "--preset", "dinov3", "--centering", "sinkhorn", "--steps", "1000")


@pytest.fixture
def planned(tmp_path, capsys):
    """Runs the command; what it printed, and its JSON."""

    def run(*arguments):
        path = tmp_path / "plan.json"
        status = main(["plan", *map(str, arguments), "--json", str(path)])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        return captured.out, json.loads(path.read_text())

    return run


def line(out, name):
    """The line of the output that starts with a name."""
    (found,) = [text for text in out.splitlines() if text.startswith(f"{name:<10}")]
    return found


def test_with_data_everything_is_known(films, planned):
    out, plan = planned("--data", films, *QUICK, "--price", 2, *tiny_settings())
    assert plan["images"] == 40
    assert plan["steps"] == 250  # 100 passes
    assert plan["passes"] == pytest.approx(100)
    assert plan["images_seen"] == 4000
    assert line(out, "steps").endswith("250 = 4,000 images seen = 100.0 passes over the images")
    assert "256 for Sinkhorn-Knopp" in line(out, "centering")
    assert plan["centering"] == "softmax"
    assert plan["memory_needed_bytes"] == pytest.approx(sum(plan["memory_bytes"].values()))
    assert plan["memory_needed_bytes"] < plan["memory_room_bytes"]
    assert plan["accumulation"] * plan["micro_batch"] == 16


def test_without_data_it_says_what_is_not_known(planned):
    out, plan = planned(*QUICK, *tiny_settings())
    assert plan["steps"] is plan["passes"] is plan["seconds"] is None
    assert "not known without --data or --images: steps, time, cost" in out
    assert line(out, "images").endswith("unknown")
    out, plan = planned(*QUICK, "--steps", 10, *tiny_settings())
    assert plan["images_seen"] == 160
    assert "not known without --data or --images: passes over the images" in out


def test_a_number_of_images_stands_for_data(planned):
    out, plan = planned(*QUICK, "--images", 1000, "--model", "vit-tiny")
    assert plan["preset"] == "preset small, for vit-tiny"
    assert plan["passes"] == pytest.approx(100, rel=0.01)
    assert "note" not in out
    _, large = planned(*QUICK, "--images", 200_000)
    assert large["preset"].startswith("preset dinov3, for 200,000 images")


def test_a_trial_of_real_steps(films, planned):
    settings = tiny_settings(train__micro_batch=4)
    out, plan = planned("--data", films, "--effective-batch", 16, "--price", 3, *settings)
    assert plan["measured"]["images"] == 4
    assert plan["measured"]["reading"] > 0
    rate = plan["images_per_second"]
    assert rate == pytest.approx(1 / plan["measured"]["seconds"])
    assert plan["seconds"] == pytest.approx(250 * 16 / rate)
    assert plan["cost"] == pytest.approx(plan["seconds"] / 3600 * 3)
    assert "measured here, 4 images at a time" in line(out, "speed")
    assert line(out, "time")
    assert line(out, "cost").endswith("at 3 an hour")


def test_a_trial_on_canvases_made_up(planned):
    _, plan = planned("--effective-batch", 4, "--steps", 5, *tiny_settings())
    assert plan["measured"]["reading"] is None
    assert plan["seconds"] == pytest.approx(20 / plan["images_per_second"])


def test_a_trial_ends_in_time(monkeypatch):
    """Where one image takes long, few images are tried; where the trial is long, it ends."""
    tried, clock = [], [0.0]

    def seconds(steps, size):
        tried.append(size)
        clock[0] += 2 * size * 2.0
        return 2.0

    monkeypatch.setattr(measure, "seconds", seconds)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    class Steps:
        class cutter:  # noqa: N801
            device = measure.torch.device("cpu")

    found = measure.trial(Steps(), 64, "CPU")
    assert tried[:2] == [1, 1]
    assert found.images == 2  # of 64: four images take 8 of 25 seconds
    assert clock[0] < 26


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu(planned, name):
    gpu = gpu_of(name)
    precision = "fp32" if gpu.bf16 is None else "bf16"
    out, plan = planned(*VITS, "--card", name, "--precision", precision, "--price", 1.5)
    peak = gpu.fp32 if gpu.bf16 is None else gpu.bf16
    flop = sum(plan["flop_per_image"].values())
    assert plan["images_per_second"] == pytest.approx(ASSUMED[precision] * peak * 1e12 / flop)
    assert plan["cost"] == pytest.approx(256_000 / plan["images_per_second"] / 3600 * 1.5)
    assert "estimate" in line(out, "speed")
    assert 256 % plan["micro_batch"] == 0
    assert plan["micro_batch"] == plan["largest_micro_batch"]
    assert plan["memory_needed_bytes"] <= gpu.usable < gpu.memory * 2**30
    assert gpu.source


def test_a_larger_gpu_holds_a_larger_micro_batch(planned):
    sizes = [
        planned(*VITS, "--effective-batch", 4096, "--card", name)[1]["micro_batch"]
        for name in ("v100-16", "a100-40", "h100", "h200")
    ]
    assert sizes == sorted(set(sizes))


def test_gpus_share_a_step(planned):
    one = planned(*VITS, "--card", "a100-40", "--precision", "bf16", "--price", 1)[1]
    four = planned(*VITS, "--card", "a100-40", "--precision", "bf16", "--price", 1, "--gpus", 4)[1]
    assert four["processes"] == 4
    assert four["micro_batch"] * four["accumulation"] == 64
    assert four["images_per_second"] > 3 * one["images_per_second"]
    assert four["seconds"] < one["seconds"] / 3
    assert four["cost"] == pytest.approx(one["cost"], rel=0.2)


def test_utilisation_can_be_said(planned):
    arguments = (*VITS, "--card", "h100", "--precision", "bf16")
    out, half = planned(*arguments, "--mfu", 0.5)
    _, assumed = planned(*arguments)
    assert half["images_per_second"] == pytest.approx(2 * assumed["images_per_second"])
    assert "50% of 989 TFLOP/s (as you say)" in out


def test_a_micro_batch_that_is_too_large_is_said_with_the_one_that_fits(planned):
    out, plan = planned(*VITS, "--card", "t4", "--micro-batch", 256)
    assert plan["micro_batch"] == 256
    assert f"take --micro-batch {plan['largest_micro_batch']}, which changes nothing" in out


def test_a_model_that_fits_nowhere_says_what_helps(planned):
    settings = ("--set", "head.prototypes=4000000")
    out, plan = planned(*VITS, *settings, "--card", "t4")
    assert plan["largest_micro_batch"] is None
    assert "it does not fit; in a new run, try fewer prototypes (head.prototypes=1000000)" in out


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (("--card", "h10"), "--card knows .*; got 'h10'; did you mean 'h100'"),
        (("--card", "t4", "--precision", "bf16"), "T4: .* cannot do in hardware; choose fp32"),
        (("--card", "t4", "--precision", "fp64"), "T4: no figures for --precision fp64"),
        (("--gpus", "0"), "--gpus is a whole number from 1; got 0"),
        (
            ("--gpus", "300"),
            r"effective batch 256 has fewer images than there are processes \(300\)",
        ),
        (("--mfu", "2", "--card", "t4"), "--mfu is a share .* got 2"),
        (("--mfu", "0.5"), "name a card with --card"),
        (("--price", "-1"), "--price is an amount"),
        (("--price", "nan"), "--price.*finite number, got nan"),
        (("--price", "cheap"), "--price.*finite number, got cheap"),
        (("--images", "0"), "--images is a whole number from 1"),
        (("--micro-batch", "7", "--no-measure"), "256 is not a multiple of micro-batch 7"),
        (("--model", "vitz16"), "'vitz16' is no known size"),
        (("--json", "nowhere/plan.json"), "--json takes a file in a folder that is there"),
        (("--data", "nowhere"), "nowhere does not exist"),
        (("--set", "views.global_size=100", "--no-measure"), "not a multiple of the patch size"),
        (("--efective-batch", "8"), "did you mean '--effective-batch'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_silly_input_is_one_line(capsys, monkeypatch, arguments, pattern):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["plan", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert re.search(pattern, lines[0]), lines[0]


def test_published_figures_are_dense_and_in_order():
    """Tensor cores in bfloat16 are twice as fast as in TF32, and never slower than float32."""
    for gpu in GPUS.values():
        assert gpu.peak("fp64") is None
        assert gpu.peak("fp32") == gpu.fp32
        if gpu.bf16 is not None:
            assert gpu.bf16 == pytest.approx(2 * gpu.tf32, rel=0.02)
            assert gpu.peak("fp32", tf32=True) == gpu.tf32 >= gpu.fp32
        else:
            assert replace(gpu).peak("fp32", tf32=True) == gpu.fp32
