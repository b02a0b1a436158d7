import pytest

from dino_x.config.options import LossOptions
from dino_x.config.policy import centering_policy
from dino_x.errors import UserError


def test_a_batch_of_one_has_no_koleo():
    for loss in (LossOptions(), LossOptions(on_small_batch="fallback")):
        assert centering_policy(loss, 1).koleo_weight == 0


@pytest.mark.parametrize(("batch", "queue"), [(2, 508), (64, 384), (255, 2)])
def test_auto_below_the_floor_is_sinkhorn_with_a_queue_that_brings_the_rows_to_it(batch, queue):
    policy = centering_policy(LossOptions(), batch)
    assert (policy.centering, policy.koleo_weight, policy.queue) == ("sinkhorn", 0.1, queue)
    assert 2 * batch + policy.queue == 2 * 256
    for words in (str(batch), "256", f"{queue:,}", "--centering softmax"):
        assert words in policy.message
    assert not policy.warning
    assert "\n" not in policy.message


@pytest.mark.parametrize("batch", [2, 64, 255])
def test_the_fallback_is_softmax_with_koleo_and_says_the_ways_out(batch):
    policy = centering_policy(LossOptions(on_small_batch="fallback"), batch)
    assert (policy.centering, policy.koleo_weight) == ("softmax", 0.1)
    for words in (str(batch), "256", "--effective-batch", "--queue"):
        assert words in policy.message


@pytest.mark.parametrize("batch", [256, 4096])
def test_auto_from_the_floor_up_is_sinkhorn_over_all_of_it(batch):
    policy = centering_policy(LossOptions(koleo_weight=0.3), batch)
    assert (policy.centering, policy.koleo_weight, policy.warning) == ("sinkhorn", 0.3, False)
    assert str(batch) in policy.message


def test_the_floor_is_an_option():
    assert centering_policy(LossOptions(floor=32), 32).centering == "sinkhorn"
    assert centering_policy(LossOptions(floor=512), 256).queue == 512


def test_what_was_chosen_is_kept_and_a_small_batch_warns():
    policy = centering_policy(LossOptions(centering="sinkhorn"), 16)
    assert (policy.centering, policy.koleo_weight, policy.warning) == ("sinkhorn", 0.1, True)
    policy = centering_policy(LossOptions(centering="softmax"), 4096)
    assert (policy.centering, policy.koleo_weight, policy.warning) == ("softmax", 0.1, False)


def test_a_queue_that_reaches_the_floor_with_the_batch_makes_auto_sinkhorn():
    policy = centering_policy(LossOptions(queue=480), 16)
    assert (policy.centering, policy.koleo_weight, policy.warning) == ("sinkhorn", 0.1, False)
    assert "480" in policy.message
    assert centering_policy(LossOptions(queue=478), 16).queue == 480
    assert centering_policy(LossOptions(queue=900), 16).queue == 900


def test_what_auto_does_below_the_floor_is_an_option():
    policy = centering_policy(LossOptions(on_small_batch="warn"), 16)
    assert (policy.centering, policy.warning) == ("sinkhorn", True)
    with pytest.raises(UserError, match="16 is below the floor of 256.*--queue 480"):
        centering_policy(LossOptions(on_small_batch="error"), 16)
    assert centering_policy(LossOptions(on_small_batch="error"), 256).centering == "sinkhorn"


def test_relaxed_marginals_are_said():
    message = centering_policy(LossOptions(sinkhorn_relaxation=0.25), 256).message
    assert "relaxed by 0.25" in message
    assert "relaxed" not in centering_policy(LossOptions(), 256).message
