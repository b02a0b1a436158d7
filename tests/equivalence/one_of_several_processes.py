"""Run by test_processes.py, several times at once: one process of runs that share each batch.

python one_of_several_processes.py RANK COUNT PORT CASES.json RESULTS

A case is a list of arguments of the command, with what to spoil in one process. What each case
ended with goes to RESULTS/case-rank.json.
"""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

import torch

from dino_x.cli import main
from dino_x.losses.checks import NotFiniteError
from dino_x.model.head import Head
from dino_x.training.effective_batch import EffectiveBatch
from dino_x.training.trainer import Trainer


def spoil(how: str, rank: int) -> contextlib.AbstractContextManager:
    """Break this process, or nothing if it is another's turn."""
    if not how or rank != 1:
        return contextlib.nullcontext()
    if how == "not finite in phase 3":

        def forward(*_args, **_kwargs):
            raise NotFiniteError("spoiled")

        return patched(EffectiveBatch, "forward", forward)
    if how == "out of memory in phase 3":

        def no_room(*_args, **_kwargs):
            raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB. More is said here.")

        return patched(EffectiveBatch, "forward", no_room)
    if how == "out of memory in phase 1":

        def no_space(*_args, **_kwargs):
            raise MemoryError("Unable to allocate 7.00 GiB for an array")

        return patched(Head, "forward", no_space)
    if how == "weights come apart":
        update = Trainer.update

        def spoiled(self, *arguments):
            norm = update(self, *arguments)
            with torch.no_grad():
                next(self.student.parameters()).add_(1e-9)
            return norm

        return patched(Trainer, "update", spoiled)
    assert how == "dies"
    return patched(Trainer, "update", lambda *_: os._exit(9))


@contextlib.contextmanager
def patched(owner: type, name: str, value: object):
    """An attribute replaced for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def run(rank: int, count: int, port: int, cases: list[dict], results: Path) -> None:
    for number, case in enumerate(cases):
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port + number),
        }  # fmt: skip
        arguments = case["arguments"] + (case.get("of the second", []) if rank == 1 else [])
        said = io.StringIO()
        with (
            spoil(case.get("spoil", ""), rank),
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(said),
        ):
            status = main(arguments)
        found = {"status": status, "said": said.getvalue()}
        (results / f"{number}-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    rank, count, port = map(int, sys.argv[1:4])
    run(rank, count, port, json.loads(Path(sys.argv[4]).read_text()), Path(sys.argv[5]))
