"""Models on disk or on the hub: where their files are, and how they want their images."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from transformers.utils import logging as transformers_logging

from dino_x.config.options import DataOptions, WindowOptions
from dino_x.data.image import DEFAULT, Reading
from dino_x.errors import UserError
from dino_x.files import parse_json, read_text

PREPARATION = "preprocessor_config.json"
OWN_PROCESSOR = "DinoXPreparation"  # no class of transformers, see ``prepared_with``
HUB_TIMEOUT = 5.0  # seconds to learn that there is no network, not the 23 s of the hub's retries
# Only used where no preprocessor_config.json says otherwise.
Channels = tuple[float, ...]
GREY: tuple[Channels, Channels] = ((0.5,), (0.25,))
IMAGENET: tuple[Channels, Channels] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Preparation:
    """How images become the model's input: windowed to [0, 1], then (x - mean) / std by channel.

    Attributes:
        image_size: height and width in pixels.
        mean: of each channel, on the scale where the window is [0, 1].
        std: of each channel, on the same scale.
        stated: whether the model's files say so; False where it is assumed.
        slices: 3 for a model trained on slices with their neighbours (2.5D), else 1.
        windows: how values become [0, 1], by modality; CT always by its fixed window.
        plain: whether a processor of transformers prepares its images rightly: it was trained on
            8-bit pictures, one at a time. For others only we do, and ``AutoImageProcessor``
            refuses the folder.
        grey: whether it was trained on images that were taken for grey, so that an image with
            colours is its luma here, too, repeated for three channels.
        reading: how files were read that do not say it themselves.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stated: bool = True
    slices: int = 1
    windows: WindowOptions = field(default_factory=WindowOptions)
    plain: bool = True
    grey: bool = False
    reading: Reading = DEFAULT

    @property
    def channels(self) -> int:
        """The number of channels: 1 (grey), 3 (RGB), or another."""
        return len(self.mean)

    @property
    def shown_channels(self) -> int:
        """The number of channels that an image has before it is normalised: 1 if it is grey."""
        return 1 if self.grey else self.channels

    @property
    def ours(self) -> dict[str, Any]:
        """The entries of ``preprocessor_config.json`` that transformers has no place for."""
        return prepared_with(self.slices, self.windows, self.plain, self.grey, self.reading)


def prepared_with(
    slices: int,
    windows: WindowOptions,
    plain: bool = True,
    grey: bool = False,
    reading: Reading = DEFAULT,
) -> dict[str, Any]:
    """The entries of ``preprocessor_config.json`` that are ours.

    Args:
        slices: see ``Preparation``.
        windows: see there.
        plain: see there; if not, the processor's type is one that transformers does not know, so
            that it refuses the folder rather than prepare 16-bit images or CT wrongly.
        grey: see there.
        reading: see there.
    """
    own = {
        "dino_x_slices": slices,
        "dino_x_windows": windows.model_dump(mode="json"),
        "dino_x_grey": grey,
        "dino_x_reading": asdict(reading),
    }
    return own if plain else own | {"image_processor_type": OWN_PROCESSOR}


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """A context for loading and saving without transformers' own bars and notices."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@dataclass(frozen=True)
class StepOfRun:
    """What ``RUN@step-400`` or ``RUN@step-400-student`` names.

    Attributes:
        run: the RUN folder.
        step: whose checkpoint.
        student: whether it is the student's network, and not the teacher's.
    """

    run: Path
    step: int
    student: bool

    @property
    def folder(self) -> Path:
        """Where its model is, once it was asked for."""
        return self.run / "models" / (f"step-{self.step:08d}" + "-student" * self.student)


def split_name(name: str | Path) -> StepOfRun | None:
    """The run and the step that a model's name is of; None if it names none.

    >>> split_name("runs/mine@step-400").step
    400
    """
    found = re.fullmatch(r"(.+)@step-(\d{1,8})(-student)?", str(name))
    if found is None or Path(name).exists():
        return None
    return StepOfRun(Path(found[1]), int(found[2]), found[3] is not None)


def find_model(name: str | Path) -> Path:
    """The folder that holds ``config.json``: of a run, of a model, or of the hub's cache.

    Raises:
        UserError: if there is none.
    """
    at_step = split_name(name)
    folder = Path(name) if at_step is None else at_step.folder
    for candidate in (folder / "model", folder):
        if (candidate / "config.json").is_file():
            return candidate
    if folder.exists():
        raise UserError(
            f"{folder} is no model: it has no config.json, nor a folder 'model' with one, as a"
            " finished run has"
        )
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", str(name)):
        raise UserError(f"no such model folder: {folder}")
    return _from_hub(str(name))


def refuse_own_code(folder: Path, name: str | Path) -> None:
    """Refuse a model whose files name Python code that is to be run for it.

    Code that comes with weights is never run here: it could do anything.

    Args:
        folder: of the model.
        name: what the user called it.

    Raises: UserError.
    """
    try:
        stated = parse_json(read_text(folder / "config.json"))
    except (OSError, ValueError):
        return  # transformers says what is wrong with it
    if isinstance(stated, dict) and stated.get("auto_map"):
        raise UserError(
            f"{name} comes with code of its own (auto_map in its config.json), which is never run;"
            " convert it to an architecture that transformers has, or remove auto_map"
        )


def _from_hub(name: str) -> Path:
    """The model's folder in the hub's cache, downloaded if it is not there yet."""
    wanted = ["config.json", PREPARATION, "model*.safetensors*"]
    try:
        cached = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
        if (cached / "config.json").is_file() and list(cached.glob("model*.safetensors")):
            return cached
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise UserError(f"no such model folder: {name}, which can be no name on the hub") from error
    missing = f"no folder '{name}' here and no such model in the local cache"
    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT)  # one request, no retries
        downloaded = Path(snapshot_download(name, allow_patterns=wanted))
    except GatedRepoError as error:
        raise UserError(
            f"{missing}; on the hub it needs consent: accept its terms on"
            f" https://huggingface.co/{name} and log in with 'hf auth login'"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{missing}; the hub has none either, or it is private") from error
    except Exception as error:  # the hub's client has no common class for network errors
        raise UserError(f"{missing}; the hub cannot be reached: {first_line(error)}") from error
    if not (downloaded / "config.json").is_file():
        raise UserError(f"'{name}' on the hub is no transformers model: it has no config.json")
    return downloaded


def read_preparation(folder: Path, config: Any) -> Preparation:
    """Size, mean and std from ``preprocessor_config.json``, else by rule.

    ``crop_size`` counts before ``size`` where the center is cropped, since it is what the model
    sees. ``rescale_factor`` is for pixels of 0 to 255; any other than 1/255 goes into mean and std.
    Without the file: the config's ``image_size``, ImageNet's mean and std for three channels, and
    mean 0.5 and std 0.25 for any other number.

    Raises:
        UserError: for values that cannot be used: a size that is not square, a mean of another
            length than the model's channels.
    """
    channels = getattr(config, "num_channels", None)
    if not isinstance(channels, int) or channels < 1:
        raise UserError(f"{folder} is no vision model ({config.model_type})")
    file = folder / PREPARATION
    if not file.is_file():
        assumed = IMAGENET if channels == 3 else (GREY[0] * channels, GREY[1] * channels)
        return Preparation(_square(config.image_size, folder), *assumed, stated=False)
    try:
        stated = parse_json(read_text(file))
        size = stated.get("size")
        if stated.get("do_center_crop"):
            size = stated.get("crop_size") or size
        image_size = _square(size or config.image_size, file)
        scale = 255
        if stated.get("do_rescale", True):
            scale = 255 * stated.get("rescale_factor", 1 / 255)
        mean, std = 0.0, 1.0
        if stated.get("do_normalize", True):
            mean, std = stated.get("image_mean", mean), stated.get("image_std", std)
        means, stds = _channels(mean, channels, file), _channels(std, channels, file)
        slices = int(stated.get("dino_x_slices", 1))
        windows = WindowOptions.model_validate(stated.get("dino_x_windows", {}))
        reading = _reading(stated.get("dino_x_reading") or {})
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}") from error
    return Preparation(
        image_size,
        tuple(mean / scale for mean in means),
        tuple(std / scale for std in stds),
        slices=slices,
        windows=windows,
        plain=stated.get("image_processor_type") != OWN_PROCESSOR,
        grey=stated.get("dino_x_grey") is True and channels == 3,
        reading=reading,
    )


def reading_stated(folder: Path) -> Reading:
    """How the files of a model's images were read, as far as its folder says so.

    Raises: UserError for a file that holds something else.
    """
    file = folder / PREPARATION
    if not file.is_file():
        return DEFAULT
    try:
        return _reading(parse_json(read_text(file)).get("dino_x_reading") or {})
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}") from error


def _reading(stated: Mapping[str, Any]) -> Reading:
    """What ``dino_x_reading`` says. Raises ValueError or TypeError for what is no option."""
    known = {name: value for name, value in stated.items() if value is not None}
    return Reading.of(DataOptions.model_validate(known))


def _square(size: Any, source: Path) -> int:
    """One side from 224, [224, 224], {"height": 224, "width": 224} or {"shortest_edge": 224}."""
    if isinstance(size, dict):
        sides = [size[key] for key in ("height", "width", "shortest_edge") if key in size]
    elif isinstance(size, list | tuple):
        sides = list(size)
    else:
        sides = [size]
    one_side = len(set(sides)) == 1 and isinstance(sides[0], int)
    if not one_side or sides[0] < 1:
        raise UserError(
            f"{source}: image size {size} is not square, which is all that is supported"
        )
    return sides[0]


def _channels(values: Any, channels: int, source: Path) -> tuple[float, ...]:
    """One value for each channel; a single one counts for all."""
    values = list(values) if isinstance(values, list | tuple) else [values]
    if len(values) not in (1, channels):
        raise UserError(
            f"{source}: {len(values)} values of mean or std for a model of {channels} channels"
        )
    return tuple(float(value) for value in values * (channels // len(values)))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return lines[0]
