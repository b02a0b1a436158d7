"""Do the promises of whole runs hold on this device? Killed and resumed, shared, exported."""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoModel

from benchmarks.gpu_parts.card import Card
from benchmarks.gpu_parts.children import ROOT, environment
from benchmarks.gpu_parts.results import Results, SkippedError
from benchmarks.gpu_parts.sharing import gradient_of_two
from dino_x.evaluation.backbone import load_backbone
from dino_x.exporting.run import TOLERANCE, export
from tests.equivalence.bench import Bench, relative_error
from tests.equivalence.one_of_several_processes import fault
from tests.tiny import make_films
from tests.training.runs import killed_after, losses, pretrain, weights

STEPS, KILLED_AFTER = 12, 3
SHARED = 1e-10
QUIET = {
    "data__workers": 1, "online__every": 0, "report__snapshots": "false", "checkpoint__every": 2,
}  # fmt: skip
LARGE = {  # activations of some GiB in one micro-batch
    "model__width": 192, "model__depth": 8, "model__heads": 3, "views__global_size": 224,
    "views__local_size": 96, "views__local_crops": 8,
}  # fmt: skip
ROOM_GIB = 2.0
WAIT = 180  # seconds for another process


def measure(card: Card, results: Results) -> None:
    """Every check; each is a line."""
    with tempfile.TemporaryDirectory(prefix="dino-x-gpu-") as place:
        folder = Path(place)
        films = make_films(folder / "films")
        precisions = ["fp32"] if card.toy or not card.has_bf16 else ["fp32", "bf16"]
        results.each(
            {
                f"killed and resumed, {precision}": partial(
                    killed_and_resumed, card, results, films, folder, precision
                )
                for precision in precisions
            }
        )
        results.each(
            {
                "export": lambda: exported(card, results, folder / "whole fp32", folder),
                "two processes": lambda: two_processes(card, results),
                "micro-batch auto": lambda: auto(card, results, films, folder / "auto"),
                "out of memory": lambda: out_of_memory(card, results, films, folder / "memory"),
            }
        )


def killed_and_resumed(
    card: Card, results: Results, films: Path, folder: Path, precision: str
) -> None:
    """A run that was killed (SIGKILL) and resumed against the one that never was."""
    flags = ("--effective-batch", 8, "--micro-batch", 4, "--steps", STEPS, "--centering",
             "sinkhorn", "--precision", precision, "--device", card.device.type)  # fmt: skip
    whole, killed = folder / f"whole {precision}", folder / f"killed {precision}"
    with quietly():
        expect_done(pretrain(films, whole, *flags, **QUIET))
        with changed_environment():
            killed_after(KILLED_AFTER, films, killed, *flags, **QUIET)
        expect_done(pretrain(films, killed, *flags, "--resume", **QUIET))
    resumed, expected = weights(killed, STEPS), weights(whole, STEPS)
    if resumed.keys() != expected.keys():
        raise RuntimeError("the checkpoints do not hold the same tensors")
    worst = max(
        float((resumed[name].double() - value.double()).abs().max())
        for name, value in expected.items()
        if value.numel()
    )
    same = worst == 0 and losses(killed) == losses(whole)
    results.found(
        f"a run in {precision}, killed (SIGKILL) and resumed, against one that never was",
        "the same bit for bit" if same else f"weights differ by up to {worst:.2g}",
        "bit for bit", same, difference=worst,
    )  # fmt: skip


def exported(card: Card, results: Results, run: Path, folder: Path) -> None:
    """An exported model, loaded by transformers on this device, against the run's own on the CPU.

    Raises: SkippedError if the run is not there.
    """
    if not (run / "model").is_dir():
        raise SkippedError("the run that it would be of has failed")
    with quietly():
        export(run, folder / "exported", "transformers", Console(quiet=True))
        images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        model = AutoModel.from_pretrained(folder / "exported").to(card.device).eval()
        with torch.no_grad():
            found = model(images.to(card.device)).last_hidden_state[:, 0].cpu()
            expected = load_backbone(run, device="cpu").model(images).last_hidden_state[:, 0]
    error = relative_error(found, expected)
    results.check("exported, loaded by transformers on this device: features", error,
                  below=TOLERANCE)  # fmt: skip


def two_processes(card: Card, results: Results) -> None:
    """Two processes that share each batch, on one card or on two, against one."""
    cards = 0 if card.toy else torch.cuda.device_count()
    backend, other = ("nccl", "cuda:1") if cards > 1 else ("gloo", str(card.device))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.gpu_parts.sharing", other, backend, str(port)]
    child = subprocess.Popen(
        command, env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        found = gradient_of_two(card.device, backend, port, rank=0)
        if child.wait(WAIT):
            raise RuntimeError("the second process failed")
    finally:
        child.kill()
        child.communicate()
    expected = Bench(card.device).exact(16)[1]
    where = f"{cards} cards" if cards > 1 else "one card" * (not card.toy) or "the CPU"
    results.check(
        f"gradient in float64 of two processes on {where} ({backend}) against one",
        relative_error(found, expected), below=SHARED,
    )  # fmt: skip


def auto(card: Card, results: Results, films: Path, run: Path) -> None:
    """``--micro-batch auto`` finds a size and trains with it."""
    flags = ("--effective-batch", 32, "--micro-batch", "auto", "--steps", 1, "--device",
             card.device.type)  # fmt: skip
    with quietly():
        expect_done(pretrain(films, run, *flags, **QUIET))
    size = json.loads((run / "micro_batch.json").read_text())["micro_batch"]
    results.found("--micro-batch auto finds a size that divides 32", str(size), "1 to 32",
                  32 % size == 0, size=size)  # fmt: skip


def out_of_memory(card: Card, results: Results, films: Path, run: Path) -> None:
    """Running out of memory ends with one line that names a micro-batch that fits."""
    flags = ("--effective-batch", 64, "--micro-batch", 64, "--steps", 1, "--device",
             card.device.type)  # fmt: skip
    with quietly() as said:
        if card.toy:  # nothing can limit the memory of a CPU for a moment: the error is raised
            error = torch.OutOfMemoryError("Tried to allocate 2.00 GiB. More is said here.")
            with fault("student", error):
                status = pretrain(films, run, *flags, **QUIET)
        else:
            with little_memory(card):
                status = pretrain(films, run, *flags, **QUIET | LARGE)
    line = said.getvalue().strip().splitlines()[-1]
    named = "--resume --micro-batch" in line
    results.found("out of memory ends with a line that names a micro-batch that fits",
                  "it does" if status == 2 and named else f"status {status}: {line[:120]}",
                  "it does", status == 2 and named)  # fmt: skip


@contextlib.contextmanager
def little_memory(card: Card) -> Iterator[None]:
    """A context in which a GPU has room for little more than what is taken."""
    total = torch.cuda.get_device_properties(card.device).total_memory
    torch.cuda.empty_cache()
    share = (torch.cuda.memory_reserved(card.device) + ROOM_GIB * 2**30) / total
    torch.cuda.set_per_process_memory_fraction(min(1.0, share), card.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, card.device)


def expect_done(status: int) -> None:
    """Raises: RuntimeError for a command that failed."""
    if status:
        raise RuntimeError(f"pretrain ended with status {status}")


@contextlib.contextmanager
def quietly() -> Iterator[io.StringIO]:
    """A context in which nothing is printed; what was said on stderr is kept."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        yield said


@contextlib.contextmanager
def changed_environment() -> Iterator[None]:
    """A context in which children see this checkout."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = environment()["PYTHONPATH"]
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
