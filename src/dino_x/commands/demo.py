"""``dino-x demo``: the main job on the films in the package, then what to do next."""

import shutil
import sys
from pathlib import Path

from rich.console import Console

from dino_x.commands.pretrain import pretrain
from dino_x.config.presets import read_config
from dino_x.demo import demo_folder, demo_labels
from dino_x.runs.folder import RunFolder

SETTINGS = demo_folder() / "demo.yaml"


def run_demo(out: Path | None, seed: int, console: Console) -> RunFolder:
    """Train on the package's films, evaluate on held-out patients and say what comes next.

    Args:
        out: the RUN folder, or None for the first of runs/demo, runs/demo-2, ... that is free.
        seed: of everything random.
        console: where to say it.
    """
    folder = demo_folder()
    overrides = read_config(SETTINGS) | {
        "data.paths": [str(folder / "films"), str(folder / "mri")],
        "data.labels": str(demo_labels()),
        "train.seed": seed,
    }
    run = pretrain(overrides, out or free_folder(Path("runs")), resume=False, console=console)
    console.print(
        "\nThis was a demonstration on two CPU cores, not a good model: see the table for how it"
        " compares.\nNext, the same small network on your own images, and its features:\n\n"
        f"{activate()}"
        "    dino-x pretrain --data FOLDER --out runs/first --preset try\n"
        "    dino-x embed --model runs/first --data FOLDER --out features.parquet\n\n"
        "docs/first-run.md goes on from there: what you see, what RUN holds, larger networks.\n",
        highlight=False,
        soft_wrap=True,
    )
    return run


def activate() -> str:
    """The line that puts ``dino-x`` on the path, where it is in an environment that is not."""
    place = Path(sys.prefix)
    if sys.prefix == sys.base_prefix or shutil.which("dino-x") is not None:
        return ""
    here = place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place
    return f"    source {here / 'bin' / 'activate'}\n"


def free_folder(parent: Path) -> Path:
    """``parent/demo``, or the first ``parent/demo-N`` that is not there."""
    candidates = (parent / (f"demo-{n}" if n > 1 else "demo") for n in range(1, 10_000))
    return next(path for path in candidates if not path.exists())
