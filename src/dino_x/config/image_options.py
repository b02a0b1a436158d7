"""Options of images: which there are, and what the networks see of them."""

from typing import Literal

from pydantic import model_validator

from dino_x.config.section import Pixels, Range, Section, Share, option

Kind = Literal[
    "localizer", "dose", "segmentation", "screenshot", "map", "mosaic", "slide_label", "mask", "all"
]


class DataOptions(Section):
    """What to train on."""

    paths: list[str] = option(
        [],
        "Folders (read with all subfolders), files, archives (.tar, .parquet), addresses"
        " of archives in object stores, or indexes.",
    )
    index: str | None = option(
        None,
        "Parquet file that stores what was read from headers; files already in it are not"
        " opened again.",
    )
    where: str | None = option(
        None,
        'Condition on the columns of the index that chooses images: \'modality == "CT" and'
        " thickness_mm <= 3'.",
    )
    slice_axis: Literal["axial", "coronal", "sagittal"] = option(
        "axial", "Direction in which volumes (NIfTI, NRRD, ...) are cut into slices."
    )
    modality: Literal["auto", "CT", "MR", "PT", "NM", "US", "CR", "DX", "MG", "XA", "OT"] = option(
        "auto",
        "Modality of volumes (NIfTI, NRRD, ...) and NumPy files that do not name one. With CT,"
        " their values are Hounsfield units.",
    )
    axes: str = option(
        "auto",
        "Axes of NumPy and TIFF files that do not name them, first axis first: H rows, W columns,"
        " C channels, N images, Z slices, T times, as in NHW, HWN, HWC or CHW. auto reads what can"
        " be read in one way only.",
    )
    take: list[Kind] = option(
        [],
        "Kinds of images that are left out by default and are to be trained on: localizer, dose,"
        " segmentation, screenshot, map, mosaic, slide_label, mask; all stands for every kind.",
    )
    labels: str | None = option(
        None,
        "'folder' (the name of its folder is an image's class), 'column' (label_column is beside"
        " the images of Parquet files), or a CSV file with the columns path and label. The model is"
        " evaluated on them at the end of the run.",
    )
    label_column: str = option(
        "label",
        "Column of the table of labels: a class, several labels (mass|nodule) or a number; or"
        " several columns of 0 and 1, with commas between their names.",
    )
    hold_out: bool = option(
        True, "If there are labels, the images that the evaluation tests on are not trained on."
    )
    label_patients: bool = option(
        True,
        "If the table of labels has a column patient, group or slide, it also says which images"
        " are of one patient in training, where their files do not.",
    )
    verify: Literal["auto", "all", "headers"] = option(
        "auto",
        "all decodes every image once before training; headers reads headers only; auto"
        " is all for up to 10,000 images.",
    )
    workers: int = option(2, "Number of threads that read images.", ge=1, le=1024)
    decode_in: Literal["threads", "processes"] = option(
        "threads",
        "processes: each worker thread decodes in its own process, so a crash of a"
        " decoder loses one image, not the run.",
    )
    cache_mb: int = option(2048, "Memory for decoded images, in MB; 0 keeps none.", ge=0)
    fetches: int = option(
        32, "Number of images that are fetched from object storage at a time.", ge=1
    )
    row_groups_mb: int = option(
        512,
        "Memory for the encoded images of the Parquet row groups that were read last, in MB.",
        ge=0,
    )
    cache: str | None = option(
        None, "Folder that keeps decoded images on disk, for this run and other runs."
    )
    cache_gb: float = option(50.0, "Largest size of the cache folder, in GB.", gt=0)
    slices: Literal[1, 3] = option(
        1,
        "1: each slice is an image. 3 (2.5D): the slice before, the slice itself and the"
        " slice after it are the channels of an image.",
    )
    spacing_mm: float | None = option(
        None,
        "Images with finer pixels are resampled to this pixel size in mm, if the file"
        " states its pixel size.",
        gt=0,
    )
    source_weights: Literal["size", "equal"] | list[float] = option(
        "size",
        "How often each path is drawn from: by its number of images (size), all alike"
        " (equal), or by numbers in the order of the paths.",
    )

    @model_validator(mode="after")
    def _axes(self) -> "DataOptions":
        letters = self.axes
        known = set(letters) <= set("NZTCHW") and {"H", "W"} <= set(letters)
        if letters != "auto" and not (known and len(set(letters)) == len(letters)):
            raise ValueError(
                f"axes is '{letters}'; it is auto, or letters of N, Z, T, C, H and W, each once, H"
                " and W among them, such as HWN"
            )
        return self

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


class CropSizes(Section):
    """Crop sizes that go together in a step, in pixels."""

    global_size: Pixels = option(224, "Side of a global crop, in pixels.")
    local_size: Pixels = option(96, "Side of a local crop, in pixels.")
    gram_size: Pixels | None = option(None, "Side of the crops of the Gram teacher, in pixels.")
    weight: float = option(
        1.0, "Share of the steps with these sizes, in proportion to the other sets.", gt=0
    )


class ViewOptions(Section):
    """Crops and what is done to them. Sizes in pixels, scales as a share of the image's area."""

    global_size: Pixels = option(224, "Side of a global crop, in pixels.")
    local_size: Pixels = option(96, "Side of a local crop, in pixels.")
    sizes: list[CropSizes] | None = option(
        None,
        "Several sets of global_size, local_size, gram_size and weight; each step draws"
        " one of them.",
        min_length=1,
    )
    early_share: Share = option(
        0.0,
        "Share of the steps, the first ones, with small crops; the others have the full size."
        " FastDINOv2 has 0.75. 0 turns that off.",
    )
    early_global_size: Pixels | None = option(
        None, "Side of a global crop in these steps, in pixels; null is half of global_size."
    )
    early_local_size: Pixels | None = option(
        None, "Side of a local crop in these steps, in pixels; null is half of local_size."
    )
    local_crops: int = option(8, "Number of local crops of an image.", ge=0, le=1000)
    global_scale: Range = option(
        (0.32, 1.0), "Smallest and largest share of the image's area that a global crop shows."
    )
    local_scale: Range = option(
        (0.05, 0.32), "Smallest and largest share of the image's area that a local crop shows."
    )
    global_scale_mm: Range | None = option(
        None,
        "Smallest and largest side of a global crop in mm, in the place of global_scale,"
        " for images whose file states the pixel size.",
    )
    local_scale_mm: Range | None = option(
        None,
        "Smallest and largest side of a local crop in mm, in the place of local_scale,"
        " for images whose file states the pixel size.",
    )
    aspect: Range = option(
        (0.75, 4 / 3), "Smallest and largest width / height of a crop, in the image's own geometry."
    )
    flip: Share = option(0.5, "Probability of a horizontal flip.")
    vertical_flip: Share = option(0.0, "Probability of a vertical flip.")
    intensity: Share = option(
        0.8, "Probability that brightness, contrast and gamma of a crop are changed."
    )
    brightness: Share = option(0.2, "A number between -x and x is added, where images span 0 to 1.")
    contrast: float = option(
        0.4,
        "The distance from the crop's mean is multiplied by a number between 1 - x and 1 + x.",
        ge=0,
        lt=1,
    )
    gamma: float = option(1.4, "Exponent of the gamma correction, between 1/x and x.", ge=1)
    blur: Share = option(0.5, "Probability of a Gaussian blur of a local crop.")
    blur_global: tuple[Share, Share] | None = option(
        (0.0, 0.9), "The same for the first and the second global crop; null takes views.blur."
    )
    blur_sigma: Range = option((0.1, 2.0), "Smallest and largest sigma of the blur.")
    blur_unit: Literal["pixels", "scaled"] = option(
        "pixels",
        "What blur_sigma is in: pixels of the crop, as in DINOv3, or scaled, pixels of a crop of"
        " 224 pixels, so that small crops are blurred as much as large ones.",
    )
    elongated: bool = option(
        False,
        "Crops of an elongated image may be as elongated as it is, beyond views.aspect, so they"
        " can be as large as their scale says. Without it they are smaller, as in DINOv3.",
    )
    interpolation: Literal["bilinear", "bicubic"] = option(
        "bilinear",
        "How crops are resized, with antialiasing. DINOv3 has bicubic, which reads twice as many"
        " pixels and overshoots at edges.",
    )
    saturation: Share = option(
        0.2,
        "Colour images: where intensities are changed, the distance from grey is multiplied by a"
        " number between 1 - x and 1 + x.",
    )
    grey: Share = option(0.2, "Colour images: probability that a crop becomes grey.")
    turns: Share = option(
        0.0,
        "Probability that a crop is turned by 90, 180 or 270 degrees, each alike. With 0.75, and"
        " flip at 0.5, all eight symmetries of a square are equally likely.",
    )
    stain: float = option(
        0.0,
        "Colour images of histology: the amounts of haematoxylin, eosin and DAB are each multiplied"
        " by a number between 1 - x and 1 + x.",
        ge=0,
        lt=1,
    )
    stain_shift: Share = option(
        0.0,
        "Colour images of histology: a number between -x and x is added to the amount of each of"
        " these dyes, in optical density.",
    )
    extra: str | None = option(
        None,
        "module:function of your own code, a pure function of crops and uniform random numbers that"
        " changes the crops last; see the page on views.",
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
    )

    @property
    def varies_stains(self) -> bool:
        """Whether the amounts of dyes change."""
        return bool(self.stain or self.stain_shift)

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
        "random",
        "CT: random draws for each view a window around lung, soft tissue, bone or brain;"
        " fixed is -1000 to 1000 HU, as in evaluation.",
    )
    xray: Literal["file", "percentiles"] = option(
        "file",
        "X-ray: file takes the window of the file if it is usable; percentiles takes the"
        " 0.5th to the 99.5th percentile.",
    )
    mr: Range = option((0.5, 99.5), "MR: percentiles of the image that become 0 and 1.")

    @model_validator(mode="after")
    def _range(self) -> "WindowOptions":
        low, high = self.mr
        if not 0 <= low < high <= 100:
            raise ValueError(f"mr must satisfy 0 <= low < high <= 100, got {low}, {high}")
        return self


class MaskOptions(Section):
    """Block masks of the student's global crops, for iBOT."""

    probability: Share = option(
        0.5, "Share of the global crops of the effective batch that are masked."
    )
    ratio: Range = option(
        (0.1, 0.5),
        "Smallest and largest share of the patches of a masked crop that are masked,"
        " spread evenly over these crops.",
    )

    @model_validator(mode="after")
    def _range(self) -> "MaskOptions":
        low, high = self.ratio
        if not 0 < low <= high < 1:
            raise ValueError(f"ratio must satisfy 0 < low <= high < 1, got {low}, {high}")
        return self
