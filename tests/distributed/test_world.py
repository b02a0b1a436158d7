"""Which process this is, as torchrun or SLURM says."""

import pytest
import torch

from dino_x.distributed.world import ProcessInfo, device_of, first_host, joined, process_info
from dino_x.errors import UserError

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "123",
}  # fmt: skip
SLURM = {
    "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "41234",
    "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gpu[07-08]",
}  # fmt: skip


def test_one_process_alone_joins_nobody():
    assert process_info({}) == ProcessInfo()
    with joined(process_info({}), torch.device("cpu")) as ranks:
        assert (ranks.rank, ranks.world_size) == (0, 1)


def test_torchruns_variables_win():
    assert process_info(TORCHRUN | SLURM) == ProcessInfo(5, 8, 1, "a", 123)


def test_slurms_variables():
    assert process_info(SLURM) == ProcessInfo(5, 8, 1, "gpu07", 20_000 + 41_234 % 20_000)
    named = {"MASTER_ADDR": "b", "MASTER_PORT": "9"}
    assert process_info(SLURM | named) == ProcessInfo(5, 8, 1, "b", 9)


def test_a_batch_script_outside_srun_is_one_process():
    outside = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}
    assert process_info(outside) == ProcessInfo()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a", "a"), ("a,b[1-2]", "a"), ("n[3,5]", "n3"), ("n[007-9]-x,m", "n007-x")],
)
def test_the_first_machine_of_a_list(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize("broken", [{"MASTER_PORT": "http"}, {"MASTER_ADDR": None}])
def test_incomplete_variables_say_how_to_start(broken):
    variables = {name: value for name, value in (TORCHRUN | broken).items() if value is not None}
    with pytest.raises(UserError, match=r"incomplete .*torchrun --nproc-per-node"):
        process_info(variables)


def test_each_process_has_the_card_of_its_local_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    where = process_info(TORCHRUN)
    assert device_of(torch.device("cuda"), where) == torch.device("cuda", 1)
    assert device_of(torch.device("cpu"), where) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="process 2 of this machine has no GPU: it has 1"):
        device_of(torch.device("cuda"), where)


def test_processes_that_do_not_meet_name_the_place(monkeypatch):
    def nobody(*_args, **_named):
        raise RuntimeError("The server socket has failed to listen: EADDRINUSE")

    monkeypatch.setattr(torch.distributed, "init_process_group", nobody)
    message = r"8 processes did not find each other at a:123: .*PORT"
    meeting = joined(process_info(TORCHRUN), torch.device("cpu"))
    with pytest.raises(UserError, match=message):
        meeting.__enter__()
