"""Images for training something on top of a backbone."""

import pickle

import nibabel
import numpy as np
import pytest
import torch

from dino_x.data.index.index import build_index
from dino_x.errors import UserError
from dino_x.evaluation.dataset import PreparedImages
from dino_x.evaluation.embed import prepared
from dino_x.model.pretrained import Preparation


@pytest.fixture
def volume(tmp_path):
    """Five slices of 16-bit values."""
    voxels = np.random.default_rng(0).normal(1000, 400, (40, 48, 5)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "volume.nii.gz")
    return build_index([tmp_path], verify="headers").rows


@pytest.mark.parametrize("slices", [1, 3])
def test_an_item_is_what_evaluation_prepares(volume, slices):
    preparation = Preparation(32, (0.4,) * slices, (0.3,) * slices, slices=slices)
    images = pickle.loads(pickle.dumps(PreparedImages(volume, preparation)))  # as workers get it
    form = (slices, 32, slices)
    _, batches = next(iter(prepared(volume, {form}, 5)))
    found = torch.stack([images[number] for number in range(len(images))])
    torch.testing.assert_close(found, (batches[form] - 0.4) / 0.3)
    assert not torch.equal(found[:, 0], found[:, -1]) or slices == 1


def test_an_image_that_cannot_be_decoded_is_named(volume):
    images = PreparedImages(volume, Preparation(32, (0.4,), (0.3,)))
    volume[0].path.write_bytes(b"")
    with pytest.raises(UserError, match="volume.nii.gz cannot be decoded"):
        images[0]
