import json
from dataclasses import replace

import pytest
import torch

from dino_x.config.options import Options
from dino_x.config.resolve import Facts, resolve
from dino_x.cost.shapes import Step
from dino_x.distributed.shares import divisors
from dino_x.errors import UserError
from dino_x.machine.out_of_memory import OutOfMemory
from dino_x.model.teacher import build_student
from dino_x.runs.folder import RunFolder
from dino_x.training import micro_batch
from dino_x.training.micro_batch import (
    Chosen,
    find,
    largest_that_runs,
    remember,
    remembered,
)
from tests.training.runs import losses, pretrain

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GIB = 2**30


class Card:
    """A GPU on which micro-batches up to a size run; it remembers what was tried."""

    def __init__(self, room: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.room, self.error, self.tried = room, error, []

    def attempt(self, size: int) -> None:
        self.tried.append(size)
        if size > self.room:
            raise self.error("CUDA out of memory")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, OutOfMemory, MemoryError])
@pytest.mark.parametrize("batch", [256, 96, 17, 1])
def test_the_largest_that_runs_whatever_the_guess(batch, error):
    for room in divisors(batch):
        for guess in range(1, batch + 5, max(1, batch // 9)):
            card = Card(room, error)
            found, tries = largest_that_runs(divisors(batch), guess, card.attempt)
            assert found == room
            assert tries == len(card.tried) == len(set(card.tried))
            assert tries <= 2 + len(divisors(batch)).bit_length()


@pytest.mark.parametrize(
    ("guess", "tried"),
    [(16, [16, 32]), (32, [32, 16]), (17, [16, 32]), (256, [256, 128, 8, 32, 16])],
)
def test_a_good_guess_takes_two_tries(guess, tried):
    card = Card(16)
    assert largest_that_runs(divisors(256), guess, card.attempt) == (16, len(tried))
    assert card.tried == tried


def test_none_runs():
    assert largest_that_runs([1, 2, 4], 2, Card(0).attempt)[0] is None


def test_another_error_is_not_taken_for_lack_of_memory():
    with pytest.raises(RuntimeError, match="shape"):
        largest_that_runs([1], 1, Card(0, lambda _: RuntimeError("shape mismatch")).attempt)


def step_of(batch: int, **settings) -> Step:
    overrides = {"preset": "dinov3", "model.name": "vits16", "train.effective_batch": batch}
    overrides |= {"train.steps": 10} | {n.replace("__", "."): v for n, v in settings.items()}
    options = resolve(overrides, Facts(1000)).options
    with torch.device("meta"):
        student = build_student(options)
    return Step.of(options, student, canvas=256, images=1000)


def never(size):
    raise AssertionError


@pytest.mark.parametrize(("batch", "size"), [(256, 16), (12, 12), (34, 2), (17, 1)])
def test_on_a_cpu_with_room_it_is_a_divisor_up_to_16(batch, size, monkeypatch):
    monkeypatch.setattr(micro_batch, "free_bytes", lambda device: 500 * GIB)
    assert find(step_of(batch), CPU, never) == Chosen(size, "auto")


@pytest.mark.parametrize(
    ("gib", "size", "words"),
    [(9.0, 16, "auto"), (7.5, 8, "auto, more would not fit in 7.5 GiB"), (2.7, 1, "auto, more")],
)
def test_on_a_cpu_it_fits_what_is_free(gib, size, words, monkeypatch):
    monkeypatch.setattr(micro_batch, "free_bytes", lambda device: gib * GIB)
    found = find(step_of(256), CPU, never)
    assert found.size == size
    assert found.why.startswith(words)
    assert not found.warning


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"preset": "try"}, 64),  # 34 tokens an image, all of the effective batch
        ({"preset": "try", "train__effective_batch": 256}, 64),  # 128 would have 4,352
        ({"preset": "try", "views__global_size": 112}, 32),  # 100 tokens: 40 images
        ({"preset": "small", "model__name": "vits16"}, 16),  # 394 tokens
        ({"views__global_size": 64, "views__local_crops": 0}, 64),
        ({"views__global_size": 64, "views__local_size": 32}, 32),  # 8 local crops of 5 tokens
    ],
)
def test_on_a_cpu_small_crops_go_together_until_products_are_large_enough(
    settings, size, monkeypatch
):
    monkeypatch.setattr(micro_batch, "free_bytes", lambda _: 64 * GIB)
    assert find(step_of(64, **settings), CPU, never) == Chosen(size, "auto")


def test_on_a_cpu_what_will_hardly_fit_is_said(monkeypatch):
    monkeypatch.setattr(micro_batch, "free_bytes", lambda device: 0.5 * GIB)
    found = find(step_of(256), CPU, never)
    assert found.size == 1
    assert found.warning
    assert "takes 2.4 GiB more and 0.5 are free" in found.why


def test_processes_on_a_cpu_share_what_is_free(monkeypatch):
    monkeypatch.setattr(micro_batch, "free_bytes", lambda device: 12 * GIB)
    alone = find(step_of(256), CPU, never)
    shared = find(replace(step_of(256), processes=4), CPU, never)
    assert alone.size == 16
    assert shared.size < 16


@pytest.fixture
def card_of(monkeypatch):
    """Makes this machine look as if it had a card of so many GiB."""

    def make(gib: float) -> None:
        monkeypatch.setattr(micro_batch, "free_bytes", lambda device: gib * GIB)
        monkeypatch.setattr(micro_batch, "limit_bytes", lambda device: gib * GIB)
        numerics = micro_batch.Numerics.of_gpu("fp32", int(gib * GIB))
        monkeypatch.setattr(micro_batch.Numerics, "on", lambda *_: numerics)
        monkeypatch.setattr(micro_batch, "limited_memory", spared.taken)

    class Spared:
        bytes = 0.0

        def taken(self, device, spare):
            import contextlib

            self.bytes = spare
            return contextlib.nullcontext()

    spared = Spared()
    make.spared = spared
    return make


def test_on_a_gpu_the_calculation_leads_to_few_tries(card_of):
    card_of(24)
    card = Card(64)
    found = find(step_of(1024), CUDA, card.attempt)
    assert found.size == 64
    assert len(card.tried) <= 3, card.tried
    assert found.why == f"found in {len(card.tried)} tries"


def test_on_a_gpu_what_comes_later_is_spared(card_of):
    """The optimizer's state, the whole batch's bottlenecks, and a share of the card."""
    card_of(24)
    step = step_of(1024)
    find(step, CUDA, Card(64).attempt)
    moments = 2 * 4 * (step.student.weights + 2 * step.head.weights)
    rows = 2 + 2 * 0.5 * 0.3 * 196  # CLS and masked patches an image
    kept = 1024 * 4 * (rows * 256 + 2 * 384)  # their bottlenecks, and what KoLeo pulls at
    expected = moments + kept + micro_batch.memory.KEPT_FREE * 24 * GIB
    assert card_of.spared.bytes == pytest.approx(expected, rel=1e-6)


def test_on_a_gpu_that_is_too_small_the_way_out_is_named(card_of):
    card_of(2)
    with pytest.raises(UserError, match=r"a micro-batch of 1 .*head.prototypes=16384"):
        find(step_of(256), CUDA, Card(0).attempt)


def test_what_changes_nothing_about_the_result_is_named_first():
    step, numerics = step_of(256, model__name="vitb16"), micro_batch.Numerics.on("fp32", CPU)
    line = micro_batch.helps(step.at(1), numerics)
    assert line.startswith("set train.activation_checkpointing=true, which changes nothing about")
    assert "; or, in a new run, try " in line
    line = micro_batch.helps(replace(step.at(1), processes=4), numerics)
    assert line.startswith(
        "set train.activation_checkpointing=true or train.shard=full, which change nothing"
    )
    train = step.options.train.model_copy(update={"activation_checkpointing": True})
    options = step.options.model_copy(update={"train": train})
    assert micro_batch.helps(replace(step, options=options), numerics).startswith("in a new run")


def test_what_is_remembered(tmp_path):
    run = RunFolder(tmp_path)
    assert remembered(run) is None
    remember(run, Chosen(8, "auto"), ["CPU, 23 GiB"])
    assert remembered(run) == (8, True, ["CPU, 23 GiB"])
    for damaged in ("", "[]", '{"micro_batch": 0, "auto": true, "devices": []}', "{}"):
        run.micro_batch.write_text(damaged)
        assert remembered(run) is None


@pytest.fixture
def finds(monkeypatch):
    """Lets a run find a micro-batch of our choice; counts how often it looks."""

    class Finder:
        size, times = 4, 0

        def __call__(self, step, device, attempt):
            self.times += 1
            return Chosen(self.size, "found")

    finder = Finder()
    monkeypatch.setattr("dino_x.training.prepare.find", finder)
    return finder


QUICK = ("--effective-batch", 8, "--steps", 2)


def kept(run):
    return json.loads((run / "micro_batch.json").read_text())


def test_a_resumed_run_keeps_the_one_it_found(films, tmp_path, finds, capsys):
    run = tmp_path / "run"
    assert pretrain(films, run, *QUICK) == 0
    assert "micro-batches of 4 (found)" in capsys.readouterr().out
    finds.size = 2
    for flags in ((), ("--micro-batch", "auto")):
        assert pretrain(films, run, *QUICK, "--resume", *flags) == 0
        assert "micro-batches of 4 (as it was found for this run)" in capsys.readouterr().out
    assert finds.times == 1


def test_on_another_device_it_is_found_anew(films, tmp_path, finds, capsys, monkeypatch):
    run = tmp_path / "run"
    assert pretrain(films, run, *QUICK) == 0
    finds.size = 2
    monkeypatch.setattr("dino_x.training.prepare.device_key", lambda device: "Another, 9 GiB")
    assert pretrain(films, run, *QUICK, "--resume") == 0
    assert "of 2 (found, anew for other devices or processes)" in capsys.readouterr().out
    assert kept(run) == {"micro_batch": 2, "auto": True, "devices": ["Another, 9 GiB"]}


def test_one_that_is_named_is_kept_and_never_found(films, tmp_path, finds, capsys):
    run = tmp_path / "run"
    assert pretrain(films, run, *QUICK) == 0
    assert pretrain(films, run, *QUICK, "--resume", "--micro-batch", 8) == 0
    capsys.readouterr()
    assert pretrain(films, run, *QUICK, "--resume") == 0
    assert "micro-batches of 8\n" in capsys.readouterr().out
    assert finds.times == 1
    assert kept(run)["auto"] is False


def test_a_run_from_before_goes_on_with_what_its_settings_say(films, tmp_path, finds, capsys):
    run = tmp_path / "run"
    assert pretrain(films, run, *QUICK) == 0
    (run / "micro_batch.json").unlink()
    finds.size = 2
    assert pretrain(films, run, *QUICK, "--resume") == 0
    assert "micro-batches of 4\n" in capsys.readouterr().out


def test_trying_one_changes_nothing(films, tmp_path, monkeypatch):
    """A run that tries sizes before its first step is the same to the bit."""
    quick = (*QUICK, "--centering", "sinkhorn")  # with KoLeo, which softmax has not here
    assert pretrain(films, tmp_path / "plain", *quick, "--micro-batch", 4) == 0

    def trying(step, device, attempt):
        for size in (8, 1, 2):
            attempt(size)
        return Chosen(4, "found")

    monkeypatch.setattr("dino_x.training.prepare.find", trying)
    for group in ("effective", 4):
        out = tmp_path / str(group)
        assert pretrain(films, out, *quick, "--koleo-group", group) == 0
    assert losses(tmp_path / "effective") == losses(tmp_path / "plain")


def test_the_default_is_auto():
    assert Options().train.micro_batch == "auto"
