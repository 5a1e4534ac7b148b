from steelray.evaluation.choose import Candidate, choose


def test_the_recipe_with_the_most_power_is_chosen_and_of_equals_the_fastest() -> None:
    slow, fast, weak = Candidate("slow", 0.51, 90.0), Candidate("fast", 0.50, 30.0), Candidate("weak", 0.2, 1.0)
    assert choose([slow, fast, weak]) == fast
    assert choose([slow, Candidate("fast", 0.4, 30.0), weak]) == slow
    assert choose([weak]) == weak
