"""The rules on histories made up for them: what each needs, and what must not set it off."""

import pytest

from dino_x.training.health.states import History, states

EVERY = 25
HEALTHY = {
    "health/target_entropy": 0.7, "health/mean_target_entropy": 0.99, "health/prototypes": 250.0,
    "health/student/feature_std": 0.9, "health/teacher/feature_std": 0.9,
    "health/student/rankme": 60.0, "health/teacher/rankme": 60.0, "health/update_ratio": 1e-3,
    "health/teacher_distance": 0.02, "health/teacher_moved": 0.01, "health/rows": 512.0,
}  # fmt: skip


def history(
    steps,
    look=lambda step: {},
    loss=lambda step: 0.85,
    momentum=0.9,
    norm=lambda s: 1.0,
    softmax=False,
):
    """Of a run of 128 features and 256 prototypes; functions of the step say what is not usual."""
    made = History(features=128, prototypes=256, softmax=softmax)
    for step in range(1, steps + 1):
        line = {
            "step": step, "health/dino_of_log_k": loss(step), "teacher_momentum": momentum,
            "gradient_norm": norm(step),
        }  # fmt: skip
        if step == 1 or step % EVERY == 0:
            line |= HEALTHY | look(step)
        made.add(line)
    return made


def names(made):
    return [state.name for state in states(made)]


def found_after(limit, **what):
    """The first step at which there is a state, and the states then."""
    for steps in range(EVERY, limit + 1, EVERY):
        if states(history(steps, **what)):
            return steps, states(history(steps, **what))
    raise AssertionError("nothing was found")


def test_a_healthy_run_has_no_state():
    for steps in (1, 25, 100, 400):
        assert names(history(steps)) == []


def uniform_targets(step):
    return {"health/target_entropy": 0.97, "health/mean_target_entropy": 1.0}


def test_uniform_from_the_start_is_named_within_200_steps():
    step, (state,) = found_after(200, look=uniform_targets, loss=lambda s: 1.0 + 0.001 * (s % 3))
    assert state.name == "uniform"
    assert (step, state.since) == (150, 1)


def test_uniform_after_a_good_start_has_its_onset_named():
    step, (state,) = found_after(
        400,
        look=lambda s: uniform_targets(s) if s >= 100 else {},
        loss=lambda s: 1.0 if s >= 100 else 0.85,
    )
    assert state.name == "uniform"
    assert 100 <= state.since <= 120
    assert step - 100 <= 200


def test_a_slow_start_is_not_uniform():
    """At log K for 100 steps, then learning; or coming down slowly but surely."""
    assert names(history(150, uniform_targets, lambda s: 1.0 if s < 100 else 0.95)) == []
    assert names(history(200, uniform_targets, lambda s: 1.0 - 1e-4 * s)) == []


def test_spread_targets_alone_are_not_uniform():
    """The student may know much of a spread target; the loss tells."""
    assert names(history(300, uniform_targets, lambda s: 0.93)) == []


def test_a_loss_at_log_k_alone_is_not_uniform():
    assert names(history(300, loss=lambda s: 1.0)) == []


def narrow_targets(step):
    """Softmax centering over a small batch: the mean target is not spread over all prototypes."""
    return {"health/target_entropy": 0.8, "health/mean_target_entropy": 0.84}


def test_with_softmax_a_loss_at_the_entropy_of_the_mean_target_is_uniform():
    """Guessing costs 0.84 of log K there, so a loss of 0.84 has not begun to learn."""
    found = {"look": narrow_targets, "loss": lambda s: 0.84 + 0.001 * (s % 3), "softmax": True}
    step, (state,) = found_after(200, **found)
    assert state.name == "uniform"
    assert (step, state.since) == (150, 1)
    assert "entropy 0.80 of log K, that of their mean 0.84" in state.seen
    assert "stays where guessing is (0.84 of log K)" in state.seen
    assert names(history(300, narrow_targets, lambda s: 0.84)) == []  # Sinkhorn-Knopp: below log K


def test_with_softmax_a_loss_below_that_is_not_uniform():
    assert names(history(300, narrow_targets, lambda s: 0.80, softmax=True)) == []
    told = {"health/target_entropy": 0.7, "health/mean_target_entropy": 0.84}
    assert names(history(300, lambda s: told, lambda s: 0.84, softmax=True)) == []
    falling = history(200, narrow_targets, lambda s: 0.84 - 1e-4 * s, softmax=True)
    assert names(falling) == []


def test_with_softmax_what_guessing_costs_is_that_of_the_look_before():
    """A mean target that spreads while the loss follows it is guessing all the way."""

    def entropy(step):
        return 0.8 + 0.15 * min(1.0, step / 300)

    def spreading(step):
        return {"health/target_entropy": 0.95 * entropy(step),
                "health/mean_target_entropy": entropy(step)}  # fmt: skip

    made = history(300, spreading, lambda s: entropy(s - s % EVERY), softmax=True)
    assert names(made) == ["uniform"]
    assert all(share == pytest.approx(1, abs=0.02) for _, share in made.losses())


def one_prototype(step):
    return {
        "health/target_entropy": 0.02, "health/mean_target_entropy": 0.03, "health/prototypes": 1.2,
    }  # fmt: skip


def test_point_of_the_targets():
    step, (state,) = found_after(
        400, look=lambda s: one_prototype(s) if s >= 100 else {}, loss=lambda s: 0.02
    )
    assert (state.name, state.since, step) == ("point", 100, 150)
    assert "1.2 of 256 prototypes" in state.seen


def test_sharp_targets_that_differ_between_images_are_no_point():
    sharp = {"health/target_entropy": 0.02, "health/mean_target_entropy": 0.6}
    assert names(history(300, lambda s: sharp)) == []


def alike(step):
    return {"health/student/feature_std": 0.05, "health/teacher/feature_std": 0.05}


def test_point_of_the_features():
    _, (state,) = found_after(400, look=lambda s: alike(s) if s >= 100 else {})
    assert (state.name, state.since) == ("point", 100)


def test_features_that_were_alike_from_the_start_are_no_point():
    """LayerScale starts at 1e-5 in DINOv3, where no image reaches the CLS token."""
    assert names(history(300, alike)) == []


def few_directions(step):
    return {"health/student/rankme": 8.0, "health/teacher/rankme": 9.0}


def test_dimensional():
    _, (state,) = found_after(400, look=lambda s: few_directions(s) if s >= 50 else {})
    assert (state.name, state.since) == ("dimensional", 50)
    assert "9.0 of 128 directions" in state.seen


@pytest.mark.parametrize(
    "look",
    [
        few_directions,  # from the start: nothing was lost
        lambda s: {"health/student/rankme": 8.0} if s >= 50 else {},  # the teacher has them
        lambda s: few_directions(s) | {"health/rows": 8.0} if s >= 50 else {},  # 8 rows
        lambda s: few_directions(s) if s == 50 else {},  # once
    ],
    ids=["from the start", "student only", "few rows", "one look"],
)
def test_not_dimensional(look):
    assert names(history(300, look)) == []


def test_three_looks_in_three_steps_are_no_collapse():
    """``health.every=1`` sees more often, and is not hastier for it."""
    for steps, expected in ((15, []), (40, ["dimensional"])):
        made = history(10)
        for step in range(11, steps + 1):
            usual = {"step": step, "health/dino_of_log_k": 0.85, "teacher_momentum": 0.9}
            made.add(usual | HEALTHY | few_directions(step) | {"gradient_norm": 1.0})
        assert names(made) == expected


def test_of_several_collapses_the_most_telling_one_is_named():
    def all_at_once(step):
        return {} if step < 50 else alike(step) | few_directions(step) | uniform_targets(step)

    assert names(history(300, all_at_once, lambda s: 1.0)) == ["point"]


def test_diverging_by_a_loss_far_above_guessing():
    made = history(80, loss=lambda s: 0.9 if s < 50 else 2.0)
    assert names(made) == ["diverging"]
    assert states(made)[0].since == 50


def test_diverging_by_jumps_of_the_loss():
    assert names(history(195, loss=lambda s: 1.3 if s > 189 else 0.8)) == ["diverging"]
    assert names(history(300, loss=lambda s: 1.3 if s == 295 else 0.8)) == [], "one is noise"


def test_diverging_by_jumps_of_the_gradient():
    hot = {"norm": lambda s: 100.0 if s > 193 else 1.0}
    assert names(history(200, loss=lambda s: 0.8 + 0.05 * (s > 193), **hot)) == ["diverging"]
    assert names(history(200, loss=lambda s: 0.8 - 0.05 * (s > 193), **hot)) == [], "it learns"


def test_teacher_is_student():
    made = history(25, lambda s: {"health/teacher_distance": 0.0}, momentum=0.0)
    assert names(made) == ["teacher-is-student"]
    still = {"health/teacher_distance": 0.0, "health/update_ratio": 1e-12}
    assert names(history(100, lambda s: still)) == [], "a student that does not move"


def test_teacher_frozen():
    still = {"health/teacher_moved": 0.0}
    assert names(history(75, lambda s: still)) == ["teacher-frozen"]
    assert names(history(75, lambda s: still, momentum=1.0)) == ["teacher-frozen"]
    assert names(history(300, lambda s: still, momentum=1 - 1e-7)) == [], "the end of a long run"


def test_a_history_is_bounded():
    made = history(3000)
    assert len(made.steps) == 400
    assert len(made.looks) == 64
