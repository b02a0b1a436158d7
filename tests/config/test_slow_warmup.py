"""The presets for few images rise slowly; the others by their share of the steps."""

import pytest

from dino_x.config.resolve import Facts, resolve


@pytest.mark.parametrize(
    ("preset", "batch", "steps", "warmup"),
    [
        ("try", 64, 960, 384),  # 24,576 images
        ("small", 256, 1000, 100),  # 24,576 images are 96 steps, a tenth of all is more
        ("small", 256, 400, 96),
        ("small", 256, 120, 48),  # at most 40%
        ("small", 64, 100_000, 10_000),
        ("dinov3", 256, 400, 40),
        ("continue", 128, 240, 24),
    ],
)
def test_the_warmup_of_each_preset(preset, batch, steps, warmup):
    asked = {"preset": preset, "train.effective_batch": batch, "train.steps": steps}
    assert resolve(asked, Facts(1000)).options.optim.warmup == warmup


def test_what_the_user_says_is_taken():
    asked = {"preset": "try", "optim.warmup": 7}
    assert resolve(asked, Facts(1000)).options.optim.warmup == 7
