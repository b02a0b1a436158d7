"""One process of several that share an effective batch: writes its gradient and terms."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2]))
from dino_x.exact import ExactStep, KoLeo, Processes, SIGReg, Sinkhorn, Softmax
from tests.exact.test_step import IMAGES, flat_gradient, micro_batches, networks

SIGREG = SIGReg(1.0, directions=20, seed=3)


def main(rank: int, count: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
    share = IMAGES // count
    found = {}
    for name, centering in {"sinkhorn": Sinkhorn(), "softmax": Softmax(0.8)}.items():
        both = networks()
        step = ExactStep(
            both,
            centering=centering,
            statistic=KoLeo(1.0),
            processes=Processes(dist.group.WORLD),
        )
        own = list(micro_batches([share] * count))[rank : rank + 1]
        result = step.gradient(own, step.first_state(queue=9), 0.07)
        found[name] = (flat_gradient(both.student), result.terms)
    both = networks()
    step = ExactStep(both, statistic=SIGREG, processes=Processes(dist.group.WORLD))
    own = list(micro_batches([share] * count))[rank : rank + 1]
    result = step.gradient(own, step.first_state(), 0.07)
    found["sigreg"] = (flat_gradient(both.student), result.terms)
    if rank == 0:  # shares that are not equal to one image are refused in all processes
        uneven = list(micro_batches([share - 2, IMAGES - share + 2]))[:1]
    else:
        uneven = list(micro_batches([share + 2] + [1] * (IMAGES - share - 2)))[:1]
    try:
        step.gradient(uneven, step.first_state(), 0.07)
    except ValueError as error:
        found["refused"] = str(error)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
