"""The network and batch that the demo had before: what older tables were measured with."""

from typing import Any

FORMER_DEMO: dict[str, Any] = {
    "preset": "small",
    "model.name": "vit-tiny",
    "model.width": 128,
    "model.depth": 4,
    "model.heads": 2,
    "views.global_size": 64,
    "train.effective_batch": 256,
    "train.micro_batch": 16,
    "train.steps": 120,
    "optim.lr": 0.003,
    "checkpoint.every": 50,
}
