"""Images as a network takes them, one at a time: for training something on top of a backbone.

C channels, S side of the square.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dino_x.data.image import ImageRef, Unreadable
from dino_x.data.loading.neighbours import neighbours, read_slices
from dino_x.data.preparation import normalised, to_square, windowed
from dino_x.data.readers.registry import read
from dino_x.errors import UserError
from dino_x.model.pretrained import Preparation


class PreparedImages(Dataset[Tensor]):
    """Images, prepared as in training and evaluation: what a ``DataLoader`` takes.

    Attributes:
        images: what each item is of: its file, its frame, the key of its patient.
        size: S.

    >>> from torch.utils.data import DataLoader
    >>> DataLoader(dino_x.load("runs/a").images("films/"), batch_size=8)  # doctest: +SKIP
    """

    def __init__(
        self, images: Sequence[ImageRef], preparation: Preparation, size: int | None = None
    ) -> None:
        self.images = list(images)
        self.preparation = preparation
        self.size = size or preparation.image_size
        self._triples: list[tuple[int, int, int]] | None = None
        if preparation.slices == 3:
            found = neighbours(self.images)
            if found.refused:
                raise UserError(
                    f"{len(found.refused)} images have no place in a volume, which a model of 2.5D"
                    " needs"
                )
            self._triples = [(a, b, c) for a, b, c in found.triples]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> Tensor:
        """An image, float32 [C, S, S], normalised.

        Raises: UserError if it cannot be decoded.
        """
        try:
            if self._triples is None:
                image = read(self.images[number])
            else:
                image = read_slices([self.images[other] for other in self._triples[number]])
        except Unreadable as error:
            raise UserError(f"{self.images[number].path} cannot be decoded: {error}") from error
        pixels_CHW = windowed(image, self.preparation.windows)
        channels = self.preparation.shown_channels
        square_CSS = torch.from_numpy(to_square(pixels_CHW, channels, self.size))
        return normalised(square_CSS[None], self.preparation.mean, self.preparation.std)[0]
