"""What health looks at is the same whatever the micro-batch."""

import pytest
import torch

from dino_x.training.step.probe import Probe


@pytest.mark.parametrize("rows", [6, 512])
def test_what_is_looked_at_does_not_depend_on_the_micro_batch(bench, rows):
    """Bitwise the same images; their features to rounding."""
    step, samples = bench(), []
    for size in (2, 16):
        result = step.trainer.exact_step.gradient(
            step.batch(size), step.state, step.temperature, probe=Probe.of(16, rows)
        )
        samples.append(result.probed)
    small, whole = samples
    assert whole.student_features_VSF.shape[:2] == (2, min(rows // 2, 16))
    for name in vars(whole):
        torch.testing.assert_close(getattr(small, name), getattr(whole, name), rtol=1e-9, atol=1e-9)


def test_the_sample_is_the_teachers_and_the_students_own_rows(bench):
    step = bench()
    trainer = step.trainer
    sample = trainer.exact_step.gradient(
        step.batch(4), step.state, step.temperature, probe=Probe.of(16, 10)
    ).probed
    (micro,) = step.micro_batches(16)
    positions = [0, 3, 6, 9, 12]
    with torch.no_grad():
        cls, _ = trainer.teacher(micro.global_crops(), None, None)
        expected = cls.unflatten(0, (2, -1))[:, positions]
        torch.testing.assert_close(sample.teacher_features_VSF, expected, rtol=1e-9, atol=1e-9)
        cls, _ = trainer.student(micro.global_crops(), micro.masks(), micro.global_randomness())
        expected = cls.unflatten(0, (2, -1))[:, positions]
        torch.testing.assert_close(sample.student_features_VSF, expected, rtol=1e-9, atol=1e-9)
