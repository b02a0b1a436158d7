"""Run by test_processes.py, several times at once: one process of runs that share each batch.

python one_of_several_processes.py RANK COUNT PORT CASES.json RESULTS

A case is a list of arguments of the command, with what to spoil in one process. What each case
ended with goes to RESULTS/case-rank.json.
"""

import contextlib
import io
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch

from dino_x.cli import main
from dino_x.distributed import watch
from dino_x.distributed.sharding import own_part
from dino_x.errors import UserError
from dino_x.exact import ExactStep
from dino_x.losses.checks import NotFiniteError
from dino_x.training import build, stopping
from dino_x.training.online import Online
from dino_x.training.step.planned_batch import PlannedBatch
from dino_x.training.steps import Steps

PARTS_OF_A_STEP = {"phase 1": "teacher", "phase 3": "student", "the losses": "losses"}
SIGNALS = {"killed": signal.SIGKILL, "frozen": signal.SIGSTOP}


def spoil(case: dict, rank: int) -> contextlib.AbstractContextManager:
    """Break this process, or nothing if it is another's turn."""
    how = case.get("spoil", "")
    if rank == 0 and case.get("first is busy"):
        return patched(Online, "evaluate", lambda *_: time.sleep(600))
    if how == "hangs":
        return hangs(rank)
    if not how or rank != case.get("in", 1):
        return contextlib.nullcontext()
    for beginning, breaks in WAYS.items():
        if how.startswith(beginning):
            return breaks(how.removeprefix(beginning))
    return dies(SIGNALS[how], case.get("after step"))


def runs_out_of_memory(where: str) -> contextlib.AbstractContextManager:
    """Memory runs out in a part of each step."""
    no_room = torch.OutOfMemoryError("Tried to allocate 2.00 GiB. More is said here.")
    if where in PARTS_OF_A_STEP:
        return fault(PARTS_OF_A_STEP[where], no_room)

    def update(*_args, **_kwargs):
        raise no_room

    return patched(Steps, "update", update)


def moves_a_weight(_: str) -> contextlib.AbstractContextManager:
    """A weight changes in this process alone, after each step."""

    def spoiled(self, *arguments):
        norm = update(self, *arguments)
        with torch.no_grad():
            next(self.student.parameters()).add_(1e-9)
        return norm

    update = Steps.update
    return patched(Steps, "update", spoiled)


def has_nan(_: str) -> contextlib.AbstractContextManager:
    """The loss of the second step is NaN in this process."""

    def nan(self, outputs, micro, *arguments):
        terms = losses(self, outputs, micro, *arguments)
        return terms | {"dino": terms["dino"] * (torch.nan if micro.plan.step == 1 else 1)}

    losses = ExactStep.losses
    return patched(ExactStep, "losses", nan)


def is_asked(_: str) -> contextlib.AbstractContextManager:
    """A signal asks this process to stop, in the second step."""

    def asked(self, step, *arguments):
        if step == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return update(self, step, *arguments)

    update = Steps.update
    return patched(Steps, "update", asked)


def dies(number: int, after: int | None) -> contextlib.AbstractContextManager:
    """A signal ends this process: in the first update, or after a step."""

    def last_step(self, step, *arguments):
        if after is None:
            os.kill(os.getpid(), number)
        norm = update(self, step, *arguments)
        if step + 1 == after:
            time.sleep(1)
            os.kill(os.getpid(), number)
        return norm

    update = Steps.update
    return patched(Steps, "update", last_step)


def gives_up(phase: int) -> contextlib.AbstractContextManager:
    """The images give out in a pass of the second step."""
    micro_batches, passes = PlannedBatch.micro_batches, []

    def gone(self):
        passes.append(self.plan.step)
        if self.plan.step == 1 and passes.count(1) == phase:
            raise UserError("1000 images in a row cannot be read any more")
        yield from micro_batches(self)

    return patched(PlannedBatch, "micro_batches", gone)


def fault(where: str, error: Exception) -> contextlib.AbstractContextManager:
    """An error in a part of each step."""

    def raised(place, _micro):
        if place == where:
            raise error

    return patched(build, "no_fault", raised)


def hangs(rank: int) -> contextlib.AbstractContextManager:
    """The second process stops for good, and the first is asked to end while it waits for it."""
    update = Steps.update

    def stuck(self, step, *arguments):
        if step == 2 and rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        if step == 2:
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return update(self, step, *arguments)

    stopping.STUCK_SECONDS = 2.0
    return patched(Steps, "update", stuck)


WAYS = {
    "not finite in phase 3": lambda _: fault("losses", NotFiniteError("spoiled")),
    "out of memory in ": runs_out_of_memory,
    "weights come apart": moves_a_weight,
    "not finite in step 2": has_nan,
    "is asked to stop": is_asked,
    "gives up in phase ": lambda phase: gives_up(int(phase)),
}


@contextlib.contextmanager
def patched(owner: type, name: str, value: object):
    """An attribute replaced for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def held(found: dict):
    """What this process holds after its last step, in bytes."""
    update = Steps.update

    def watched(self, *arguments):
        norm = update(self, *arguments)
        weights, state = list(self.student.parameters()), self.state.optimizer.state
        found["bytes"] = {
            "student": bytes_of(weights),
            "teacher": bytes_of(self.teacher.parameters()),
            "gradients": bytes_of(w.grad for w in weights if w.grad is not None),
            "optimizer": bytes_of(v for w in weights for v in state[w].values() if v.ndim),
        }
        return norm

    with patched(Steps, "update", watched):
        yield


def bytes_of(tensors):
    """Of their memory, once where it is shared."""
    storages = [own_part(tensor).untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def run(rank: int, count: int, port: int, cases: list[dict], results: Path) -> None:
    for number, case in enumerate(cases):
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port + number),
        }  # fmt: skip
        arguments = case["arguments"] + (case.get("of the second", []) if rank == 1 else [])
        printed, found = io.StringIO(), {}
        with (
            held(found),
            spoil(case, rank),
            patched(watch, "BEAT", case.get("beat", watch.BEAT)),
            contextlib.redirect_stderr(printed),
            contextlib.redirect_stdout(printed),
        ):
            status = main(arguments)
        found |= {"status": status, "said": printed.getvalue()}
        (results / f"{number}-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    rank, count, port = map(int, sys.argv[1:4])
    run(rank, count, port, json.loads(Path(sys.argv[4]).read_text()), Path(sys.argv[5]))
