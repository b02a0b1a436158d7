"""What the functions of ``dino_x`` return: a run, a model, features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from dino_x.errors import UserError
from dino_x.files import read_json
from dino_x.terminal import Terminal

if TYPE_CHECKING:
    from torch import nn

    from dino_x.data.image import ImageRef
    from dino_x.evaluation.backbone import LoadedModel
    from dino_x.evaluation.dataset import PreparedImages
    from dino_x.runs.folder import RunFolder

PathLike = str | Path
Paths = PathLike | Sequence[PathLike]


@dataclass(frozen=True)
class Embeddings:
    """Features of images, in the order of the images.

    Attributes:
        cls: the CLS token after the final norm, float32 [N, D], not normalised.
        patches: the mean of the patch tokens, float32 [N, D].
        images: what each row is of: its file, its frame in the file, the key of its patient.
        unreadable: images that could not be decoded; they have no row.
    """

    cls: np.ndarray
    patches: np.ndarray
    images: list[ImageRef]
    unreadable: list[ImageRef]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Model:
    """A trained backbone, and how it wants its images.

    Attributes:
        name: the RUN, folder or name that it was loaded from.
        loaded: the network and its preparation of images.
    """

    name: str
    loaded: LoadedModel

    @property
    def network(self) -> nn.Module:
        """The transformers model, in evaluation mode."""
        return self.loaded.model

    def embed(self, images: Paths, *, batch_size: int = 64, verbose: bool = False) -> Embeddings:
        """Features of all images below some paths, prepared as in training and evaluation.

        Args:
            images: folders, files or indexes.
            batch_size: images that go through the network together.
            verbose: show a progress bar.

        Raises: UserError if there are no images.
        """
        from dino_x.commands.embed import embed_images

        return Embeddings(
            *embed_images(self.name, self.loaded, as_paths(images), batch_size, console(verbose))
        )

    def embed_to(
        self,
        out: PathLike,
        images: Paths,
        *,
        patches: PathLike | None = None,
        index: PathLike | None = None,
        where: str | None = None,
        batch_size: int = 64,
        verbose: bool = False,
    ) -> Path:
        """Write features to a table, a row an image; see ``docs/features.md``.

        It needs no memory for all features at once, and a call that was interrupted is continued by
        the same call.

        Args:
            out: the table, ``.parquet`` or ``.csv``.
            images: folders, files or indexes.
            patches: a ``.npy`` file for the patch features, float16 [M, P, P, D].
            index: an index of the images.
            where: a condition on the images, such as ``modality == "CT"``.
            batch_size: images that go through the network together.
            verbose: show progress, and what was written.

        Returns: the table.

        Raises: UserError if there are no images, a file exists already, or half-done features are
            those of another model or of other images.
        """
        from dino_x.commands.feature_table import write_features

        return write_features(
            self.name,
            self.loaded,
            as_paths(images),
            Path(out),
            console(verbose),
            grid=None if patches is None else Path(patches),
            index=None if index is None else Path(index),
            where=where,
            batch_size=batch_size,
        )

    def images(self, images: Paths, *, size: int | None = None) -> PreparedImages:
        """The images below some paths as the network takes them, to train something on top of it.

        They are prepared as in training and evaluation: windows, 16 bits, volumes and slices with
        their neighbours included. Nothing is read but headers until an item is asked for.

        Args:
            images: folders, files or indexes.
            size: side of the squares in pixels; by default that of the model. A multiple of the
                side of a patch.

        Returns: a data set for a ``DataLoader``; its ``images`` say what each item is of.

        Raises: UserError if there are no images.
        """
        from dino_x.commands.embed import images_below
        from dino_x.evaluation.dataset import PreparedImages

        refs = images_below(self.name, as_paths(images))
        return PreparedImages(refs, self.loaded.preparation, size)


class Run:
    """The folder of a run.

    Args:
        path: the folder that ``pretrain`` made.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def metrics(self) -> list[dict[str, Any]]:
        """What was recorded of each step, in order: loss terms, rates, health, images a second.

        Raises: UserError if this is no run.
        """
        from dino_x.runs.folder import lines

        folder = self._folder()
        return list(lines(folder.metrics, 2**62))

    def model(self, *, device: str = "auto") -> Model:
        """The model that was trained; ``.network`` is the transformers model.

        Raises: UserError if the run has none yet.
        """
        return load(self.path, device=device)

    def evaluation(self) -> dict[str, Any] | None:
        """The evaluation at the end of the run; None if there is none.

        Raises: UserError if this is no run.
        """
        file = self._folder().evaluation
        return read_json(file) if file.is_file() else None

    def resume(self, *, verbose: bool = False) -> Run:
        """Continue the run from its newest checkpoint.

        Raises: UserError if this is no run, or the images or the settings have changed.
        """
        from dino_x.commands.pretrain import pretrain as train

        self._folder()
        train({}, self.path, True, console(verbose))
        return self

    def report(self, out: PathLike | None = None, *, images: bool = True) -> Path:
        """Write the page about the run.

        Args:
            out: the HTML file; ``report.html`` in the run by default.
            images: whether the page shows images of the data.

        Returns: the file.
        """
        from dino_x.report.write import report as write

        return write(self.path, None if out is None else Path(out), images=images)

    def _folder(self) -> RunFolder:
        from dino_x.runs.folder import RunFolder

        folder = RunFolder(self.path)
        if not folder.exists:
            raise UserError(f"{self.path} is no run; name a folder that dino-x pretrain made")
        return folder


def load(model: PathLike, *, device: str = "auto") -> Model:
    """A trained backbone with its preparation of images.

    Args:
        model: a run, a folder as transformers saves models, a name on the hub, or a ``.pth`` file.
        device: auto, cpu, cuda or mps.

    Raises: UserError if it cannot be loaded.
    """
    from dino_x.evaluation.backbone import load_backbone

    return Model(str(model), load_backbone(model, device=device))


def as_strings(paths: Paths) -> list[str]:
    """One path or several as a list of strings."""
    if isinstance(paths, str | Path):
        return [str(paths)]
    return [str(path) for path in paths]


def as_paths(paths: Paths) -> list[Path]:
    """One path or several as a list of paths."""
    from dino_x.data.storage.member import as_path

    return [as_path(path) for path in as_strings(paths)]


def text(value: PathLike | None) -> str | None:
    """A path as text."""
    return None if value is None else str(value)


def console(verbose: bool) -> Console:
    """Where messages go: to the screen, or nowhere."""
    return Terminal(quiet=not verbose)
