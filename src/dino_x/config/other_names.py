"""Names that other tools have for our options, so that a message can say ours."""

from collections.abc import Iterable

from dino_x.errors import nearest

OTHER_NAMES = {
    "lr": "optim.lr",
    "learning_rate": "optim.lr",
    "base_lr": "optim.lr",
    "min_lr": "optim.lr_end",
    "weight_decay": "optim.weight_decay",
    "wd": "optim.weight_decay",
    "warmup_epochs": "optim.warmup",
    "warmup_steps": "optim.warmup",
    "clip_grad": "optim.clip",
    "batch_size": "train.effective_batch",
    "batch_size_per_gpu": "train.micro_batch",
    "global_batch_size": "train.effective_batch",
    "effective_batch_size": "train.effective_batch",
    "micro_batch_size": "train.micro_batch",
    "accumulate_grad_batches": "train.micro_batch",
    "gradient_accumulation_steps": "train.micro_batch",
    "epochs": "train.steps",
    "max_epochs": "train.steps",
    "max_steps": "train.steps",
    "num_steps": "train.steps",
    "iterations": "train.steps",
    "num_workers": "data.workers",
    "workers": "data.workers",
    "image_size": "views.global_size",
    "img_size": "views.global_size",
    "resolution": "views.global_size",
    "crop_size": "views.global_size",
    "num_local_crops": "views.local_crops",
    "local_crops_number": "views.local_crops",
    "arch": "model.name",
    "architecture": "model.name",
    "backbone": "model.name",
    "pretrained": "model.name",
    "patch_size": "model.patch_size",
    "in_chans": "model.channels",
    "in_channels": "model.channels",
    "drop_path_rate": "model.drop_path",
    "out_dim": "head.prototypes",
    "n_prototypes": "head.prototypes",
    "ema_momentum": "teacher.momentum",
    "momentum_teacher": "teacher.momentum",
    "teacher_temp": "teacher.temperature",
    "student_temp": "loss.student_temperature",
    "mixed_precision": "train.precision",
    "amp": "train.precision",
    "fp16": "train.precision",
    "output_dir": "--out",
    "output": "--out",
    "out_dir": "--out",
    "input": "--data",
    "data_path": "--data",
    "data_dir": "--data",
    "checkpoint": "--resume",
    "resume_from_checkpoint": "--resume",
}


def hint(name: str, known: Iterable[str], flags: dict[str, str] | None = None) -> str:
    """``"; did you mean 'optim.lr'?"`` for a name of another tool or a near miss, or nothing.

    Args:
        name: that is not known, with or without dashes in front.
        known: our names.
        flags: the flag of each option that has one; with it the hint is a flag, or ``--set``.
    """
    plain = name.lstrip("-").replace("-", "_").lower()
    ours = OTHER_NAMES.get(plain.rpartition(".")[2])
    if ours is None:
        return nearest(name, known) or _same_key(plain, known)
    if flags is not None and not ours.startswith("--"):
        ours = flags.get(ours, f"--set {ours}=VALUE")
    extra = " (a step is an effective batch of images)" if "epoch" in plain else ""
    return f"; did you mean '{ours}'?{extra}"


def _same_key(plain: str, known: Iterable[str]) -> str:
    """A hint for a key without its section, such as ``koleo_weight``."""
    found = [name for name in known if name.rpartition(".")[2] == plain]
    return f"; did you mean '{found[0]}'?" if found else ""
