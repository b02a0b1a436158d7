"""What ``dino-x COMMAND --help`` says beside its flags: a sentence, and an example that runs."""

import textwrap

START = """\
start here:
  dino-x demo                                     (films in the package, 5 minutes)
  dino-x pretrain --data FOLDER --out runs/first --preset try         (your images)
  dino-x embed --model runs/first --data FOLDER --out features.parquet

dino-x COMMAND --help shows an example; dino-x options WORD finds an option."""

# command: (a sentence, an example)
TEXTS = {
    "pretrain": (
        "Train a backbone on unlabelled images, and evaluate it at the end if there are labels.",
        "dino-x pretrain --data films/ --out runs/mine --labels labels.csv\n"
        "dino-x pretrain --out runs/mine --resume",
    ),
    "plan": (
        "Say what a run would take in memory and time, here or on a GPU you do not have. Nothing is"
        " trained.",
        "dino-x plan --data films/ --card rtx3090 --precision bf16",
    ),
    "index": (
        "List the images of folders with what their headers say, as a table; run it again to bring"
        " it up to date.",
        "dino-x index studies/ --out studies.parquet\n"
        "dino-x pretrain --data studies.parquet --where 'bits == 16' --out runs/16",
    ),
    "views": (
        "Draw what the network will see of 16 images: crops, windows, intensities, masks. It takes"
        " the flags of pretrain.",
        "dino-x views --data films/ --out views.png",
    ),
    "evaluate": (
        "Compare a model with random weights and raw pixels, by kNN, linear probe, few labels and"
        " segmentation.",
        "dino-x evaluate --model runs/mine --data films/ --labels labels.csv",
    ),
    "embed": (
        "Write the features of images to a table; the same command continues what was interrupted.",
        "dino-x embed --model runs/mine --data films/ --out features.parquet",
    ),
    "batch-floor": (
        "Measure how large the effective batch must be for the targets of a model on images.",
        "dino-x batch-floor --model runs/mine --data films/ --out floor/",
    ),
    "export": (
        "Write the model of a run for other tools, read it back and compare, with a model card.",
        "dino-x export runs/mine --to exported/ --format timm",
    ),
    "report": (
        "Write one HTML page about a run, while it trains, too; no network is needed to read it.",
        "dino-x report runs/mine",
    ),
    "compare": (
        "Show settings, curves and scores of runs side by side.",
        "dino-x compare runs/a runs/b --out compare.html",
    ),
    "demo": (
        "Pretrain a very small network on chest films in the package, and evaluate it.",
        "dino-x demo",
    ),
    "options": (
        "Show every option of a run: its default, what presets set, its values and its meaning.",
        "dino-x options lr\ndino-x options views",
    ),
}


def sentence(command: str) -> str:
    """What a command does, in lines."""
    return textwrap.fill(TEXTS[command][0], 78)


def example(command: str) -> str:
    """The example of a command as it stands at the end of its help."""
    lines = TEXTS[command][1].splitlines()
    return "\n".join(["example:" if len(lines) == 1 else "examples:", *(f"  {x}" for x in lines)])
