"""Every option of a run: its meaning, its check, its default. The presets are in presets.py.

The command line, the saved ``config.yaml`` and the documentation come from these classes.
Defaults are DINOv3's published values wherever it has one (Simeoni et al. 2025, and the
configuration released with it); what is ours is said so.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
Range = tuple[float, float]


class Section(BaseModel):
    """A group of options that never change; an option it does not know is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, protected_namespaces=()
    )


def option(default: Any, meaning: str, **checks: Any) -> Any:
    """An option with its meaning beside it."""
    return Field(default, description=meaning, **checks)


class DataOptions(Section):
    """What to train on."""

    paths: list[str] = option(
        [],
        "folders (read recursively), files, shards (.tar, .parquet) or their addresses, or indexes",
    )
    index: str | None = option(
        None, "index (.parquet) to keep: of files that it knows no header is read again"
    )
    where: str | None = option(
        None, """which images, by columns of the index: 'modality == "CT" and thickness_mm <= 3'"""
    )
    slice_axis: Literal["axial", "coronal", "sagittal"] = option(
        "axial", "how volumes (NIfTI) are cut into slices"
    )
    modality: Literal["auto", "CT", "MR", "PT", "NM", "US", "CR", "DX", "MG", "XA", "OT"] = option(
        "auto", "of NIfTI and NumPy files, which name none; with CT they are in Hounsfield units"
    )
    labels: str | None = option(
        None, "'folder', or a CSV with columns path and label: evaluated at the end of the run"
    )
    label_column: str = option("label", "column of the CSV that holds the class")
    hold_out: bool = option(
        True, "where there are labels, images they are tested on are not trained on"
    )
    verify: Literal["auto", "all", "headers"] = option(
        "auto", "decode every image once before training: all, or only headers; auto up to 10,000"
    )
    workers: int = option(2, "threads that read images", ge=1)
    decode_in: Literal["threads", "processes"] = option(
        "threads", "processes: each thread has one; a decoder that crashes costs an image, no run"
    )
    cache_mb: int = option(2048, "decoded images kept in memory, MB; 0 keeps none", ge=0)
    fetches: int = option(32, "images fetched at a time from object storage", ge=1)
    row_groups_mb: int = option(
        512, "encoded images kept of the Parquet row groups read last, MB", ge=0
    )
    cache: str | None = option(
        None, "folder that keeps decoded images on disk, for this and other runs"
    )
    cache_gb: float = option(50.0, "most that the cache folder may hold, GB", gt=0)
    slices: Literal[1, 3] = option(
        1, "1: each slice by itself; 3 (2.5D): the slice before, itself and the next as channels"
    )
    spacing_mm: float | None = option(
        None, "pixels finer than this are resampled to it where the file says their size", gt=0
    )
    source_weights: Literal["size", "equal"] | list[float] = option(
        "size", "share of each path: its number of images, equal, or numbers in the paths' order"
    )

    @model_validator(mode="after")
    def _weights(self) -> "DataOptions":
        weights = self.source_weights
        if isinstance(weights, str):
            return self
        if not weights or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
            raise ValueError(f"source_weights are numbers from 0, not all of them 0; got {weights}")
        if self.paths and len(weights) != len(self.paths):
            raise ValueError(
                f"source_weights has {len(weights)} numbers for {len(self.paths)} paths of data"
            )
        return self


class ModelOptions(Section):
    """The backbone. A name fixes the sizes; each can be set by itself."""

    name: str = option(
        "vits16",
        "vit-tiny, vits16, vitb16, vitl16; or weights: a RUN, a folder, a hub name, .pth",
    )
    allow_partial: bool = option(
        False, "start even if less than 99% of the tensors could be loaded; the rest are new"
    )
    heads_from: Literal["auto", "new", "run"] = option(
        "auto", "projection heads: new, or those of the RUN the model is; auto: the RUN's if it is"
    )
    channels: Literal[1, 3] | None = option(
        None, "input channels; null = as loaded, 3 if new. Grey images keep their features"
    )
    width: PositiveInt | None = option(None, "features of a token, D")
    depth: PositiveInt | None = option(None, "layers")
    heads: PositiveInt | None = option(None, "attention heads")
    patch_size: PositiveInt | None = option(
        None, "side of a patch, pixels; loaded patch kernels are resized to it"
    )
    registers: int | None = option(None, "register tokens", ge=0)
    layerscale: float | None = option(None, "initial LayerScale of a new model", gt=0)
    init: Literal["normal", "fan_in"] = option(
        "normal", "weights of a new model: normal = std 0.02, fan_in = std sqrt(1 / (2 * width))"
    )
    drop_path: float = option(0.3, "stochastic depth, the same rate in every layer", ge=0, lt=1)
    rope_rescale: float | None = option(
        2.0, "RoPE coordinates are scaled by 1/x to x in training; null turns it off", gt=1
    )


class HeadOptions(Section):
    """The projection heads, one for DINO and one for iBOT, alike."""

    prototypes: PositiveInt = option(65536, "prototypes, K")
    layers: PositiveInt = option(3, "layers of the MLP")
    hidden: PositiveInt = option(2048, "its hidden width")
    bottleneck: PositiveInt = option(256, "width of the L2-normalised bottleneck")
    init: Literal["normal", "fan_in"] = option(
        "normal", "its weights: normal = std 0.02 as DINOv3, fan_in = std sqrt(1 / inputs)"
    )
    normalize_prototypes: bool = option(False, "prototypes on the unit sphere, as in DINOv2")


class CropSizes(Section):
    """Crop sizes that go together in a step, in pixels."""

    global_size: PositiveInt = option(224, "side of a global crop")
    local_size: PositiveInt = option(96, "side of a local crop")
    gram_size: PositiveInt | None = option(None, "side of the Gram teacher's crops")
    weight: float = option(1.0, "share of the steps, against the other sets", gt=0)


class ViewOptions(Section):
    """Crops and what is done to them. Sizes in pixels, scales as a share of the image's area."""

    global_size: PositiveInt = option(224, "side of a global crop")
    local_size: PositiveInt = option(96, "side of a local crop")
    sizes: list[CropSizes] | None = option(
        None, "several sets of global_size, local_size, gram_size and weight; one is drawn a step",
        min_length=1,
    )  # fmt: skip
    local_crops: int = option(8, "local crops an image", ge=0)
    global_scale: Range = option((0.32, 1.0), "share of the image a global crop shows")
    local_scale: Range = option((0.05, 0.32), "share of the image a local crop shows")
    global_scale_mm: Range | None = option(
        None, "instead, side in mm of a global crop, where the file says the size of a pixel"
    )
    local_scale_mm: Range | None = option(None, "likewise of a local crop")
    aspect: Range = option((0.75, 4 / 3), "width / height of a crop, in the image's own geometry")
    flip: Share = option(0.5, "probability of a horizontal flip")
    vertical_flip: Share = option(0.0, "probability of a vertical flip")
    intensity: Share = option(0.8, "probability of a change of brightness, contrast and gamma")
    brightness: Share = option(0.2, "added: up to +- this, where images span 0 to 1")
    contrast: float = option(0.4, "times 1 +- up to this, about the crop's mean", ge=0, lt=1)
    gamma: float = option(1.4, "exponent 1/x to x", ge=1)
    blur: Share = option(0.5, "probability of a Gaussian blur")
    blur_sigma: Range = option((0.1, 2.0), "its sigma in pixels of a 224-pixel crop")

    @model_validator(mode="after")
    def _ranges(self) -> "ViewOptions":
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} must satisfy 0 < low <= high <= 1, got {low}, {high}")
        for name in ("aspect", "blur_sigma", "global_scale_mm", "local_scale_mm"):
            low, high = getattr(self, name) or (1.0, 1.0)
            if not 0 < low <= high:
                raise ValueError(f"{name} must satisfy 0 < low <= high, got {low}, {high}")
        return self


class WindowOptions(Section):
    """Which values of an image become 0 and 1, where its modality leaves a choice."""

    ct: Literal["random", "fixed"] = option(
        "random", "CT: lung, soft tissue, bone or brain and around them, drawn for each view; or"
        " -1000 to 1000 HU, as in evaluation",
    )  # fmt: skip
    xray: Literal["file", "percentiles"] = option(
        "file", "X-ray: the file's window if it has a usable one; or the 0.5th to 99.5th percentile"
    )
    mr: Range = option((0.5, 99.5), "MR: percentiles of the image")

    @model_validator(mode="after")
    def _range(self) -> "WindowOptions":
        low, high = self.mr
        if not 0 <= low < high <= 100:
            raise ValueError(f"mr must satisfy 0 <= low < high <= 100, got {low}, {high}")
        return self


class MaskOptions(Section):
    """Block masks of the student's global crops, for iBOT."""

    probability: Share = option(0.5, "share of the global crops of the effective batch masked")
    ratio: Range = option((0.1, 0.5), "share of patches masked, spread evenly over those crops")

    @model_validator(mode="after")
    def _range(self) -> "MaskOptions":
        low, high = self.ratio
        if not 0 < low <= high < 1:
            raise ValueError(f"ratio must satisfy 0 < low <= high < 1, got {low}, {high}")
        return self


class LossOptions(Section):
    """Loss terms and what keeps the targets from collapsing."""

    centering: Literal["auto", "sinkhorn", "softmax"] = option(
        "auto", "auto: sinkhorn from the floor up, below it softmax centering with KoLeo off"
    )
    floor: PositiveInt = option(256, "effective batch from which auto is sinkhorn (ours)")
    on_small_batch: Literal["fallback", "warn", "error"] = option(
        "fallback", "what auto does below the floor: softmax, Sinkhorn-Knopp with a warning, stop"
    )
    queue: int = option(
        0, "past teacher outputs (2 an image) that take part in Sinkhorn-Knopp, a head", ge=0
    )
    sinkhorn_iterations: PositiveInt = option(3, "Sinkhorn-Knopp iterations")
    sinkhorn_relaxation: Share = option(
        0.0,
        "0: every prototype is used equally; towards 1 weakens that, for classes of unequal"
        " size; 1 is no centering at all",
    )
    center_momentum: Share = option(0.9, "softmax centering: momentum of the running mean")
    student_temperature: float = option(0.1, "temperature of the student's softmax", gt=0)
    dino_weight: float = option(1.0, "DINO: mean over (view, global view) pairs", ge=0)
    ibot_weight: float = option(
        0.5, "iBOT: mean over masked crops; DINOv3's 1.0 is over all crops, half of them masked",
        ge=0,
    )  # fmt: skip
    koleo_weight: float = option(0.1, "KoLeo, for each of the two global views", ge=0)
    implementation: Literal["fused", "reference"] = option(
        "fused", "of Sinkhorn-Knopp and cross-entropy; reference holds every logit in memory"
    )
    koleo_group: Literal["effective"] | PositiveInt = option(
        "effective", "images among which KoLeo looks for neighbours; its value depends on it"
    )


class GramOptions(Section):
    """Gram anchoring: patch features keep the similarities they had in an earlier teacher."""

    weight: float = option(0.0, "of the Gram term; DINOv3's is 2; 0 = off", ge=0)
    weight_start: float = option(0.0, "at gram.start, from where it rises to weight", ge=0)
    warmup: int = option(0, "steps of that rise", ge=0)
    start: int = option(0, "step from which the term counts", ge=0)
    teacher: str | None = option(
        None, "Gram teacher: a RUN, a folder or a hub name; null = the EMA teacher at gram.start"
    )
    refresh: PositiveInt | None = option(
        None, "steps after which the Gram teacher is the EMA teacher taken anew; null = never"
    )
    refreshes: PositiveInt = option(3, "at most so often")
    size: PositiveInt | None = option(
        None, "side of the crops it sees, pixels; null = the student's. Features are resized"
    )
    resize: Literal["bicubic", "bilinear"] = option("bicubic", "how, with antialiasing")


class TeacherOptions(Section):
    """What makes the targets: the EMA teacher, or a frozen one that is distilled."""

    model: str | None = option(
        None, "distill this RUN: its backbone and heads, frozen, make the targets; null = the EMA"
    )
    momentum: Share = option(0.992, "at the start; rises to momentum_end by a cosine")
    momentum_end: Share = option(1.0, "at the end")
    temperature_start: float = option(0.04, "of the targets at the start", gt=0)
    temperature: float = option(0.07, "of the targets after the warmup", gt=0)
    temperature_warmup: int | None = option(None, "its steps; null = 30% of all", ge=0)


class OptimOptions(Section):
    """AdamW and its schedules."""

    lr: float = option(0.004, "peak learning rate at an effective batch of lr_batch", gt=0)
    lr_batch: PositiveInt = option(1024, "lr is scaled by sqrt(effective batch / lr_batch)")
    lr_end: float = option(1e-6, "at the end of the cosine", ge=0)
    warmup: int | None = option(None, "steps of linear warmup; null = 10% of all", ge=0)
    weight_decay: float = option(0.04, "at the start; rises to weight_decay_end by a cosine", ge=0)
    weight_decay_end: float = option(0.4, "at the end", ge=0)
    layer_decay: float = option(0.9, "learning rate of a layer against the one above", gt=0, le=1)
    patch_embed_lr: float = option(0.2, "learning rate of the patch embedding, times", ge=0)
    clip: float = option(3.0, "gradient norm above which it is scaled down; 0 = off", ge=0)
    freeze_last_layer: int | None = option(
        None, "steps in which the prototypes are not trained; null = 1% of all", ge=0
    )
    freeze_backbone: int | None = option(
        None, "steps in which only the heads are trained; null = see the preset", ge=0
    )
    beta1: float = option(0.9, "AdamW", ge=0, lt=1)
    beta2: float = option(0.999, "AdamW", ge=0, lt=1)


class TrainOptions(Section):
    """How long, in what portions, on what."""

    effective_batch: PositiveInt = option(256, "images an optimizer step")
    micro_batch: PositiveInt | Literal["auto"] = option(
        "auto", "images that go through the network together; changes nothing but memory and speed"
    )
    steps: PositiveInt | None = option(None, "optimizer steps; null = see the preset")
    seed: int = option(0, "everything random comes from it", ge=0)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to train")
    precision: Literal["fp32", "bf16", "fp64"] = option("fp32", "bf16 is mixed precision")
    activation_checkpointing: bool = option(
        False, "compute activations again in the backward pass: much less memory, a third more time"
    )
    compile: bool = option(
        False, "torch.compile the blocks: takes minutes at the start, and gains nothing on a CPU"
    )
    skip_not_finite: int = option(
        3, "steps without a finite loss and gradient are skipped; after so many in a row the run"
        " goes back to its last checkpoint, once; 0: it stops at the first", ge=0,
    )  # fmt: skip
    backoff: float = option(
        0.5, "the learning rate is multiplied by it when a run goes back", gt=0, lt=1
    )
    shard: Literal["none", "full"] = option(
        "none",
        "with several processes: full keeps networks and optimizer in parts, one a process, for"
        " models that do not fit on one card; changes nothing but memory and speed",
    )


class CheckpointOptions(Section):
    """What is kept on disk."""

    every: PositiveInt = option(100, "steps between checkpoints; the last step always has one")
    keep: PositiveInt = option(2, "newest checkpoints kept")
    background: bool = option(
        True, "write them while training goes on; takes memory for a copy of the state"
    )


class ReportOptions(Section):
    """The page about the run, report.html. None of it changes the training."""

    page: bool = option(True, "write RUN/report.html at the end of the run")
    images: bool = option(True, "show images in it; turn it off where text is burnt into them")
    snapshots: bool = option(
        True, "keep patch features of 6 images at 6 steps, to show how they change"
    )


class HealthOptions(Section):
    """What watches a run. It changes nothing about the trajectory."""

    every: int = option(
        25, "steps between looks at features, targets and weights; 0 turns health off", ge=0
    )
    rows: int = option(512, "views a look is over, at most", ge=4)
    on_collapse: Literal["warn", "stop"] = option(
        "warn", "when a run has collapsed or diverges: say so, or save a checkpoint and stop"
    )


class OnlineOptions(Section):
    """A small evaluation of the teacher while training. It changes nothing about the trajectory."""

    every: int | None = option(
        None, "steps between two; null = about 10 times a run, 0 turns it off", ge=0
    )
    images: int = option(512, "images it looks at, at most (kNN: references, and queries)", ge=2)


class Options(Section):
    """All options of a run."""

    preset: Literal["auto", "small", "dinov3", "continue", "highres"] = option(
        "auto", "where the defaults come from"
    )
    data: DataOptions = DataOptions()
    model: ModelOptions = ModelOptions()
    head: HeadOptions = HeadOptions()
    views: ViewOptions = ViewOptions()
    windows: WindowOptions = WindowOptions()
    masks: MaskOptions = MaskOptions()
    loss: LossOptions = LossOptions()
    gram: GramOptions = GramOptions()
    teacher: TeacherOptions = TeacherOptions()
    optim: OptimOptions = OptimOptions()
    train: TrainOptions = TrainOptions()
    checkpoint: CheckpointOptions = CheckpointOptions()
    report: ReportOptions = ReportOptions()
    health: HealthOptions = HealthOptions()
    online: OnlineOptions = OnlineOptions()


# What may differ when a run is resumed: none of it changes the trajectory.
FREE_ON_RESUME = (
    "train.micro_batch", "train.device", "train.activation_checkpointing", "train.compile",
    "train.shard",
    "data.workers", "data.cache_mb", "data.verify", "data.cache", "data.cache_gb", "data.index",
    "data.decode_in", "data.fetches", "data.row_groups_mb",
    "checkpoint.every", "checkpoint.keep", "checkpoint.background", "report.page", "report.images",
    "report.snapshots",
    "health.every", "health.rows", "health.on_collapse", "online.every", "online.images",
)  # fmt: skip
