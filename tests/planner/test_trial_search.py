"""The search for a depth and a learning rate, on trials made up of one known loss for each candidate."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedact.config.choice import Choice, choice_text
from fedact.planner.trial_search import choose, rung, usual_choice
from fedact.training.judgement import Judgement, clearly_better

NOISE = np.linspace(-1.0, 1.0, 40)
"""The losses of hard and easy examples, the same for every candidate."""


def judged(layers: int, lr: float, loss: float, spread: float = 0.0, finished: bool = True) -> Judgement:
    """Return a judgement with this mean loss, which differs from others' by up to ``spread``, example by example."""
    own = spread * np.where(np.arange(40) % 2, 1.0, -1.0) * (1 + layers)
    return Judgement(layers, lr, 1.0, 2.0 + loss + NOISE + own - own.mean(), 0.5, finished)


def chosen(losses, layers="auto", lr=None, convolutions=52, has_head=True, spread=0.0) -> tuple[Choice, list]:
    """Return the choice among candidates with these losses (of depth and rate), and those that were tried, in order."""
    asked = []

    def judge(depth, rate, rival):
        asked.append((depth, rate))
        return judged(depth, rate, losses(depth, rate), spread)

    return choose(judge, layers, convolutions, lr, 0.03, has_head), asked


def bowl(best_depth: int, best_rate: float):
    """Return losses that grow with the distance, in rungs, from one depth and rate."""
    return lambda depth, rate: abs(np.log(rate / best_rate)) + abs(depth - best_depth) / 4


@pytest.mark.parametrize(("best", "depth"), [(0, 0), (3, 4), (8, 8), (16, 16), (32, 32)])
@pytest.mark.parametrize("rate", [0.01, 0.03, 0.1, 0.3])
def test_the_best_of_a_bowl_is_found(best, depth, rate):
    choice, asked = chosen(bowl(best, rate))
    assert (choice.layers, choice.lr(depth)) == (depth, rate)
    assert len(asked) == len(set(asked)) <= 11


def test_a_shorter_step_where_the_long_one_diverges():
    choice, _ = chosen(lambda depth, rate: 1000.0 if rate > 0.01 else 0.01 / rate - depth / 100)
    assert (choice.layers, choice.lr(choice.layers)) == (32, 0.01)


def test_what_was_ended_early_is_never_chosen():
    def judge(depth, rate, rival):
        return judged(depth, rate, -depth - rate, finished=rival is None)

    choice = choose(judge, "auto", 52, None, 0.03, True)
    assert (choice.layers, choice.lr(8)) == (8, 0.03)


@pytest.mark.parametrize("spread", [0.0, 0.2])
def test_more_than_the_usual_depth_is_trained_where_its_mean_loss_is_less(spread):
    assert chosen(lambda depth, rate: -depth / 1000 + abs(np.log(rate / 0.03)), spread=spread)[0].layers == 32
    assert chosen(lambda depth, rate: abs(depth - 16) / 1000 + abs(np.log(rate / 0.03)), spread=spread)[0].layers == 16


@pytest.mark.parametrize(("spread", "layers"), [(0.0, 0), (0.2, 8)])
def test_the_head_alone_is_trained_only_where_it_is_clearly_better(spread, layers):
    assert chosen(lambda depth, rate: depth / 1000 + abs(np.log(rate / 0.03)), spread=spread)[0].layers == layers


def test_the_head_alone_is_trained_where_depth_does_not_pay():
    assert chosen(lambda depth, rate: depth + abs(np.log(rate / 0.1)))[0] == Choice(
        0, ((0, 0.1),), chosen(lambda depth, rate: depth + abs(np.log(rate / 0.1)))[0].trials
    )


def test_what_is_given_stays():
    choice, asked = chosen(bowl(16, 0.3), layers=3)
    assert (choice.layers, choice.lr(3), {depth for depth, _ in asked}) == (3, 0.3, {3})
    choice, asked = chosen(bowl(16, 0.3), lr=0.007)
    assert (choice.layers, {rate for _, rate in asked}) == (16, {0.007})
    assert choice.lr(0) == choice.lr(16) == 0.007


def test_a_network_without_a_head_or_with_few_layers():
    assert all(depth for depth, _ in chosen(bowl(0, 0.03), has_head=False)[1])
    choice, asked = chosen(bowl(16, 0.03), convolutions=5)
    assert choice.layers == 5
    assert max(depth for depth, _ in asked) == 5
    assert chosen(bowl(16, 0.03), convolutions=0)[0].layers == 0


def test_a_depth_between_two_that_were_tried_has_the_deeper_ones_rate():
    choice = Choice(16, ((0, 0.1), (8, 0.03), (16, 0.01)))
    assert [choice.lr(depth) for depth in (0, 1, 8, 9, 16, 20)] == [0.1, 0.03, 0.03, 0.01, 0.01, 0.01]


@given(st.floats(1e-3, 10), st.floats(-0.2, 0.2))
def test_the_last_bits_of_a_loss_choose_nothing(scale, shift):
    one, other = judged(8, 0.03, 0.0), judged(16, 0.03, 1e-9 * scale, spread=1e-6)
    assert not clearly_better(one, other)
    assert not clearly_better(other, one)
    assert clearly_better(judged(8, 0.03, shift - 1e-3 * scale), judged(8, 0.03, shift))


@given(st.integers(-8, 2), st.sampled_from([1, 3]), st.integers(-6, 6))
def test_the_ladder_goes_up_and_down_alike(power, digit, moves):
    lr = float(f"{digit}e{power}")
    assert rung(rung(lr, moves), -moves) == lr
    assert rung(lr, 2) == pytest.approx(10 * lr)


@pytest.mark.parametrize(("layers", "convolutions", "depth"), [("auto", 52, 8), ("auto", 3, 3), (20, 52, 20), (0, 52, 0)])
def test_without_a_trial(layers, convolutions, depth):
    choice = usual_choice(layers, convolutions, 0.03)
    assert (choice.layers, choice.lr(depth), choice.trials) == (depth, 0.03, ())


def test_the_text_of_a_choice_names_its_rival():
    deep, shallow = chosen(bowl(16, 0.03))[0], chosen(bowl(0, 0.1))[0]
    assert choice_text(deep.trials, deep.layers).startswith("16 convolutions at 0.03, of ")
    assert "; the head alone at 0.03: " in choice_text(deep.trials, deep.layers)
    assert choice_text(shallow.trials, 0).startswith("the head alone at 0.1, of ")
    assert choice_text([], 3) == "3 convolutions; of 0 candidates tried none finished"
