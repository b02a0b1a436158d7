from dino_x.randomness import generator


def test_draws_are_a_function_of_seed_step_and_purpose():
    first = generator(3, 5, "crops").random(4)
    assert (generator(3, 5, "crops").random(4) == first).all()
    for other in (generator(4, 5, "crops"), generator(3, 6, "crops"), generator(3, 5, "masks")):
        assert (other.random(4) != first).all()
