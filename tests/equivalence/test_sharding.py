"""Networks in parts, one a process: the same training, in a part of the memory."""

import shutil

import pytest

from tests.equivalence.test_processes import (
    CASES,
    COMMON,
    arguments,
    assert_same,
    metrics,
    several,
    weights,
)
from tests.training.runs import pretrain

pytestmark = pytest.mark.slow

QUIET = {"online__every": 0, "report__snapshots": False}  # tested in the others, and slow
SHARDED = {
    "queue": CASES["queue"],
    "gram": CASES["gram"],
    "softmax": CASES["softmax"] | QUIET,
    "frozen": {  # parts that become trainable, and a Gram teacher that is taken anew
        "optim__freeze_backbone": 1, "optim__freeze_last_layer": 2, "loss__centering": "sinkhorn",
        "gram__weight": 1.0, "gram__start": 1, "gram__refresh": 1, "optim__clip": 0.1,
        "head__normalize_prototypes": True, **QUIET,
    },
    "few masks": {  # micro-batches without any, and layers that all rows of one drop
        "loss__centering": "sinkhorn", "masks__probability": 0.15, "model__drop_path": 0.6, **QUIET,
    },
    "distilled": {"loss__centering": "sinkhorn", "head__init": "fan_in", **QUIET},
    "no registers": {  # the presets' own default for a new model: an empty parameter
        "preset": "small", "model__registers": 0, "loss__centering": "sinkhorn",
        "gram__weight": 1.0, "gram__start": 1, **QUIET,
    },
    "bf16": {  # without KoLeo, which makes much of small differences in so small a network
        "train__precision": "bf16", "loss__centering": "sinkhorn", "loss__koleo_weight": 0.0,
        **QUIET,
    },
}  # fmt: skip


def settings(name, folder):
    """Of a case; the runs of one process are in ``folder``."""
    distilled = {"teacher__model": folder / "softmax"} if name == "distilled" else {}
    return SHARDED[name] | distilled


@pytest.fixture(scope="module")
def alone(films, tmp_path_factory):
    """Each case with one process and the whole batch at once."""
    folder = tmp_path_factory.mktemp("alone")
    for name in SHARDED:
        overrides = COMMON | {"train__micro_batch": 16} | settings(name, folder)
        assert pretrain(films, folder / name, **overrides) == 0
    return folder


def sharded(count, micro_batch, names, films, alone, folder, others=()):
    """Runs of some cases in parts, and other cases; what the processes of each ended with."""
    cases = [
        {"arguments": arguments(films, folder / name, micro_batch, train__shard="full",
                                **settings(name, alone))}
        for name in names
    ]  # fmt: skip
    found = several(count, [*cases, *others], folder / "results")
    for ranks in found[: len(names)]:
        assert [of_rank["status"] for of_rank in ranks] == [0] * count, ranks
        assert not any(of_rank["said"] for of_rank in ranks[1:])
    return folder, found


@pytest.fixture(scope="module")
def by_two(films, alone, tmp_path_factory):
    """All cases; one that goes on from one process's first checkpoint; one that is refused."""
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(alone / "gram", folder / "resumed")
    sorted((folder / "resumed" / "checkpoints").glob("*.pt"))[-1].unlink()
    resumed = arguments(films, folder / "resumed", 4, train__shard="full", **SHARDED["gram"])
    refused = arguments(films, folder / "refused", 4, train__shard="full", train__skip_not_finite=0)
    others = [
        {"arguments": [*resumed, "--resume"]},
        {"arguments": refused, "spoil": "not finite in phase 3"},
    ]
    return sharded(2, 4, list(SHARDED), films, alone, folder, others)


@pytest.fixture(scope="module")
def by_four(films, alone, tmp_path_factory):
    return sharded(4, 2, ["few masks"], films, alone, tmp_path_factory.mktemp("four"))


@pytest.mark.parametrize("name", [*(name for name in SHARDED if name != "bf16"), "resumed"])
def test_two_parts_train_as_one_network_does(alone, by_two, name):
    assert_same(alone, by_two[0], name, resumed="gram")


def test_two_parts_in_mixed_precision(alone, by_two):
    """Weights are in float32 and summed in it, products in bfloat16."""
    steps, alone_steps = metrics(by_two[0] / "bf16"), metrics(alone / "bf16")
    for step, alone_step in zip(steps, alone_steps, strict=True):
        for term in ("loss", "dino", "ibot", "gradient_norm"):
            assert step[term] == pytest.approx(alone_step[term], rel=0.02)


def test_four_parts_train_as_one_network_does(alone, by_four):
    assert_same(alone, by_four[0], "few masks")


def test_a_run_in_parts_goes_on_in_one_process(films, alone, by_two, tmp_path):
    """Its checkpoints are those of a whole network."""
    shutil.copytree(by_two[0] / "gram", tmp_path / "gram")
    sorted((tmp_path / "gram" / "checkpoints").glob("*.pt"))[-1].unlink()
    overrides = COMMON | {"train__micro_batch": 16, "train__shard": "none"} | SHARDED["gram"]
    assert pretrain(films, tmp_path / "gram", "--resume", **overrides) == 0
    assert_same(alone, tmp_path, "gram")
    assert weights(tmp_path / "gram").keys() == weights(alone / "gram").keys()


@pytest.mark.parametrize("count", [2, 4])
def test_each_process_holds_its_part_alone(by_two, by_four, count):
    """A row that does not divide costs a little: a part has the rows of the largest."""
    of_case = {2: by_two, 4: by_four}[count][1][0]  # the first case
    whole = 8 * sum(v.numel() for n, v in weights_of_a_network(by_two[0]).items())
    for rank in of_case:
        held = rank["bytes"]
        assert held["student"] == held["teacher"]
        assert held["gradients"] <= held["student"] <= 1.1 * whole / count
        assert held["optimizer"] <= 2 * held["student"]
    assert sum(rank["bytes"]["student"] for rank in of_case) >= whole


def weights_of_a_network(folder):
    state = weights(folder / "gram")
    return {name: v for name, v in state.items() if not name.startswith("teacher ")}


def test_a_loss_that_is_no_number_in_one_process_ends_all(by_two):
    """In the middle of a step in which each waits for the others."""
    first, second = by_two[1][-1]
    assert (first["status"], second["status"]) == (2, 2)
    assert "not finite in another process" in first["said"]
    assert second["said"] == ""
    assert all(step["skipped"] for step in metrics(by_two[0] / "refused"))
