"""benchmarks/gpu.py: its table, what it skips, its children, and all of it at toy size."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_parts import card as card_module
from benchmarks.gpu_parts.card import Card, reason_of
from benchmarks.gpu_parts.children import run_part
from benchmarks.gpu_parts.results import Results, SkippedError, read
from benchmarks.gpu_parts.table import broken, table

PARTS = ["right", "fast", "fed", "learns", "peer"]
OLD_DRIVER = (
    "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040)."
    " Please update your GPU driver"
)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "gpu.jsonl"


def test_the_table_names_the_card_and_has_a_row_a_line(out):
    results = Results(out, "right", 60)
    results.machine({"device": "NVIDIA H100", "torch": "PyTorch 2.11"})
    results.check("a gradient", 2e-15, below=1e-10)
    results.check("a control", 0.001, above=0.01)
    results.check("a resumed run", 0.0)
    results.skipped("views", "it needs a GPU, and there is none")
    Results(out, "fast", 60).found("ViT-S/16", "1,950 images/s", images_per_second=1950)
    lines = read(out)
    text = table(lines, PARTS)
    assert text.splitlines()[0] == "NVIDIA H100, PyTorch 2.11"
    assert "| right | a gradient | 2e-15 | < 1e-10 | holds |" in text
    assert "| right | a control | 0.001 | > 0.01 | **does not hold** |" in text
    assert "| right | a resumed run | 0 | 0 | holds |" in text
    assert "| right | views | not measured |  | it needs a GPU, and there is none |" in text
    assert text.splitlines()[-1] == "| fast | ViT-S/16 | 1,950 images/s |  |  |"
    assert [line["what"] for line in broken(lines)] == ["a control"]
    assert all("seconds" in line for line in lines)


def test_a_table_from_a_cpu_says_so_first(out):
    Results(out, "right", 60).machine({"device": "CPU, 2 threads", "no_gpu": "there is no GPU"})
    first = table(read(out), PARTS).splitlines()[0]
    assert first == "CPU, toy size (there is no GPU): CPU, 2 threads"


def test_a_last_line_that_was_cut_is_left_out(out):
    Results(out, "right", 60).check("a gradient", 1e-15, below=1e-10)
    with out.open("a") as file:
        file.write('{"part": "ri')
    assert len(read(out)) == 1


def test_why_there_is_no_gpu():
    assert reason_of([], None) == "this build of PyTorch has no CUDA"
    assert reason_of([], "13.0") == "there is no GPU"
    too_old = reason_of([OLD_DRIVER], "13.0")
    assert too_old.startswith("the driver is too old for a PyTorch built for CUDA 13.0: update it")
    assert "\n" not in reason_of(["something else\nwith more"], "13.0")


def test_a_card_that_this_pytorch_has_no_code_for(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("CUDA error: no kernel image is available\nmore")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", refuse)
    assert card_module.why_no_gpu() == (
        "PyTorch cannot compute on this GPU: CUDA error: no kernel image is available"
    )


def test_what_a_card_lacks_is_skipped_with_a_reason(monkeypatch, out):
    old = Card(None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 * 2**30, 8 * 2**30))
    results = Results(out, "fast", 60)
    results.each(
        {
            "bf16": old.need_bf16,
            "memory": lambda: old.need_memory(20),
            "enough": lambda: old.need_memory(2),
            "no GPU": Card("there is no GPU").need_gpu,
        }
    )
    said = {line["what"]: line["skipped"] for line in read(out)}
    assert said == {
        "bf16": "it needs bf16, which this card (compute capability 7.5) lacks",
        "memory": "it needs about 20 GiB of the GPU's memory, and 3 are free",
        "no GPU": "it needs a GPU, and there is no GPU",
    }
    Card("there is no GPU").need_bf16()  # toy size has no bf16 to need
    Card("there is no GPU").need_memory(20)


def test_one_failure_is_a_line_and_the_others_run(out):
    results = Results(out, "right", 60)
    done = []

    def fail():
        raise ValueError("of no use\nmore")

    def skip():
        raise SkippedError("not here")

    results.each({"fails": fail, "skips": skip, "runs": lambda: done.append(1)})
    results.attempt("late", lambda: done.append(2), needs=1000)
    failed, skipped, late = read(out)
    assert failed["found"] == "failed: ValueError: of no use"
    assert failed["holds"] is False
    assert skipped["skipped"] == "not here"
    assert late["skipped"] == "no time is left for it: it takes about 1000 s"
    assert done == [1]


CHILD = """
import json, subprocess, sys, time
with open(sys.argv[1], "a") as file:
    file.write(json.dumps({"part": "right", "what": "first", "skipped": "x"}) + "\\n")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, file=open(sys.argv[1] + ".pid", "w"), flush=True)
time.sleep(60)
"""


def test_a_part_is_ended_at_its_limit_with_all_that_it_started(out):
    started = time.monotonic()
    run_part("right", [sys.executable, "-c", CHILD, str(out)], out, 1.5)
    assert time.monotonic() - started < 10
    first, end = read(out)
    assert first["what"] == "first"
    assert end["skipped"] == "ended at its limit of 2 s; what it found before is kept"
    pid = Path(f"{out}.pid").read_text().strip()
    state = Path(f"/proc/{pid}/stat")
    if Path("/proc").is_dir():
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize(
    ("code", "end"),
    [
        ("import sys; print('so it is'); sys.exit(3)", "failed with status 3: so it is"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "failed with status -9: it"),
        ("pass", "failed with status 0: it said nothing"),
    ],
)
def test_how_a_part_failed_is_a_line(out, code, end):
    run_part("fast", [sys.executable, "-c", code], out, 20)
    (line,) = read(out)
    assert line["found"].startswith(end)
    assert line["holds"] is False


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--minutes", "0"], "0 is no number of minutes above 0"),
        (["--only", "quick"], "invalid choice: 'quick'"),
        (["--data", "/nowhere"], "--data /nowhere holds no manifest.csv"),
        (["--out", "/nowhere/gpu.jsonl"], "there is no such folder"),
    ],
)
def test_bad_arguments_end_with_one_line_and_status_2(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        gpu.main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
def test_every_part_runs_at_toy_size_and_the_table_says_so(out, monkeypatch, capsys):
    """Each part in this process, to import torch once; the last as a child, as the command does."""
    assert gpu.main(["--minutes", "3", "--only", "peer", "--out", str(out)]) == 0
    monkeypatch.setattr(card_module, "why_no_gpu", lambda: "as the test wants it")
    for name, seconds in (("right", 200), ("fast", 40), ("fed", 40), ("learns", 8)):
        gpu.in_this_process(name, out, seconds, {})
    capsys.readouterr()
    assert gpu.main(["--table", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("CPU, toy size (as the test wants it)")
    rows = [line for line in read(out) if "part" in line]
    assert {row["part"] for row in rows} == set(PARTS)
    assert not broken(rows), json.dumps(broken(rows), indent=1)
    held = [row["what"] for row in rows if row.get("holds")]
    assert len(held) >= 14, held
    for wanted in ("killed (SIGKILL) and resumed", "two processes", "negative control", "exported",
                   "--micro-batch auto", "out of memory"):  # fmt: skip
        assert any(wanted in what for what in held), wanted
    for wanted in ("images/s", "where a step", "reading from DICOM", "training on 96",
                   "linear: raw pixels"):  # fmt: skip
        found = [row for row in rows if wanted in row["what"] + row.get("found", "")]
        assert found, wanted
