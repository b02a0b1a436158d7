"""How much time and memory do the losses over prototypes take, beside plain PyTorch?

Forward + backward of the cross-entropy (one teacher row a student row, as for masked patches), and
the Sinkhorn-Knopp bias, float32, 256 features. Each case runs in a process of its own. Extra memory
is what the peak adds to the inputs, gradients included: resident memory on a CPU, allocated memory
on CUDA. Times are the best of the runs: on a CPU processor seconds, which other programs on the
machine disturb less than the clock on the wall; on CUDA the latter.

    python benchmarks/prototype_heads.py                                # the whole table
    python benchmarks/prototype_heads.py --rows 1024 --prototypes 65536 # one line of each
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from dino_x.losses import prototype_cross_entropy, sinkhorn_bias

DIM = 256
ROWS = [1_024, 4_096, 16_384]
PROTOTYPES = [16_384, 65_536, 262_144]
# [rows, prototypes] float32 matrices that the plain versions hold at their peak, measured below.
REFERENCE_MATRICES = {"cross-entropy": 3, "sinkhorn": 3}
FAST = {"cross-entropy": "fused", "sinkhorn": "streaming"}
GIB = 2**30


@dataclass
class Measurement:
    """One case: what it took, or why it was not run."""

    seconds: float = 0.0
    extra_bytes: int = 0
    reason: str = ""

    def cells(self) -> str:
        """Time and memory, or the reason, in columns."""
        if self.reason:
            return f"{self.reason:>20}"
        return f"{self.seconds:>8.2f} s {self.extra_bytes / GIB:>6.2f} GiB"


def main() -> None:
    options = parse_options()
    if options.case:
        case: tuple[str, str, str, str] = tuple(options.case)
        print(json.dumps(measure(*case, options.device, options.repeat)))
        return
    print_machine(options.device)
    for loss in options.loss:
        title = f"{loss:>13} {'rows':>7} {'prototypes':>10}"
        print(f"\n{title} {FAST[loss]:>20} {'reference':>20} {'time':>7} {'memory':>8}")
        for prototypes in options.prototypes:
            for rows in options.rows:
                fast = run(loss, FAST[loss], rows, prototypes, options)
                plain = run(loss, "reference", rows, prototypes, options)
                ratios = ""
                if not fast.reason and not plain.reason:
                    time_ratio = fast.seconds / plain.seconds
                    memory_ratio = plain.extra_bytes / max(1, fast.extra_bytes)
                    ratios = f"{time_ratio:>6.2f}x {memory_ratio:>6.1f}x"
                line = f"{'':>13} {rows:>7,} {prototypes:>10,} {fast.cells()} {plain.cells()}"
                print(f"{line} {ratios}".rstrip(), flush=True)
    print("\ntime: fast / reference, lower is better; memory: reference / fast, higher is better")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loss", nargs="+", choices=list(FAST), default=list(FAST))
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--prototypes", nargs="+", type=int, default=PROTOTYPES)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeat", type=int, default=2, help="runs of a case; the best counts")
    parser.add_argument(
        "--memory", type=float, default=10.0, help="GiB; larger references are not run"
    )
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)  # one process of the sweep
    return parser.parse_args()


def run(
    loss: str, implementation: str, rows: int, prototypes: int, options: argparse.Namespace
) -> Measurement:
    """One case in its own process, unless it is known not to fit."""
    if implementation == "reference":
        estimate = REFERENCE_MATRICES[loss] * rows * prototypes * 4 / GIB
        if estimate > options.memory:
            return Measurement(reason=f"needs {estimate:.0f} GiB")
    case = [loss, implementation, str(rows), str(prototypes)]
    command = [sys.executable, str(Path(__file__).resolve()), "--case", *case]
    command += ["--device", options.device, "--repeat", str(options.repeat)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last_line = (done.stderr.strip().splitlines() or ["killed"])[-1]
        return Measurement(reason=last_line[:20])
    return Measurement(**json.loads(done.stdout))


def measure(
    loss: str, implementation: str, rows: str, prototypes: str, device: str, repeat: int
) -> dict[str, float]:
    """Time and peak memory of a case, in this process."""
    prepare = {"cross-entropy": cross_entropy_step, "sinkhorn": sinkhorn_step}[loss]
    prepare(implementation, 8, 16, device)()  # libraries load, threads start
    step = prepare(implementation, int(rows), int(prototypes), device)
    before = memory_now(device)
    clock = time.perf_counter if device == "cuda" else time.process_time
    seconds = []
    for _ in range(repeat):
        start = clock()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    return {"seconds": min(seconds), "extra_bytes": memory_peak(device) - before}


def unit_rows(rows: int, device: str) -> Tensor:
    return functional.normalize(torch.randn(rows, DIM, device=device), dim=1)


def cross_entropy_step(
    implementation: str, rows: int, prototypes: int, device: str
) -> Callable[[], None]:
    torch.manual_seed(0)
    student_RD = unit_rows(rows, device).requires_grad_()
    student_KD = unit_rows(prototypes, device).requires_grad_()
    teacher_RD, teacher_KD = unit_rows(rows, device), unit_rows(prototypes, device)
    bias_K = torch.zeros(prototypes, device=device)
    pairs_P2 = torch.arange(rows)[:, None].expand(rows, 2).contiguous()

    def step() -> None:
        student_RD.grad = student_KD.grad = None
        prototype_cross_entropy(
            student_RD,
            student_KD,
            teacher_RD,
            teacher_KD,
            bias_K,
            pairs_P2,
            student_temperature=0.1,
            teacher_temperature=0.07,
            implementation=implementation,
        ).backward()

    return step


def sinkhorn_step(
    implementation: str, rows: int, prototypes: int, device: str
) -> Callable[[], None]:
    torch.manual_seed(0)
    rows_ND, prototypes_KD = unit_rows(rows, device), unit_rows(prototypes, device)

    def step() -> None:
        sinkhorn_bias(rows_ND, prototypes_KD, 0.07, implementation=implementation)

    return step


def memory_now(device: str) -> int:
    """Bytes in use; the peak counts from here."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
    return process_status("VmRSS")


def memory_peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else process_status("VmHWM")


def process_status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; the CPU benchmark needs Linux")


def print_machine(device: str) -> None:
    if device == "cuda":
        where = torch.cuda.get_device_name()
    else:
        names = [
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        where = f"{names[0]}, {torch.get_num_threads()} threads" if names else "CPU"
    print(f"{where}; PyTorch {torch.__version__}; float32; {DIM} features")


if __name__ == "__main__":
    main()
