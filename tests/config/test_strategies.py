"""Every strategy against its paper's formula, for fleets whose clients train different tensors."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import trim_mean

from fedact.config.errors import ConfigError
from fedact.config.strategies import STRATEGIES, make_strategy
from fedact.federation.aggregation import Aggregation
from fedact.training.server_optimizer import ServerOptimizer
from tests.support.portions import examples

NAMES = ("deep.weight", "head.weight", "head.bias")
SHAPES = {"deep.weight": (2, 3), "head.weight": (3,), "head.bias": (1,)}
STEPPING = ("fedavgm", "fedadam", "fedyogi", "fedadagrad")

client = st.tuples(st.sets(st.sampled_from(NAMES)), st.integers(0, 50), st.integers(0, 2**32 - 1))
"""What a client trains, on how many examples, and the seed of its update."""
rounds = st.lists(st.lists(client, max_size=5), min_size=1, max_size=4)


def update(names, seed: int) -> dict[str, torch.Tensor]:
    random = np.random.default_rng(seed)
    every = {name: torch.from_numpy(random.normal(size=SHAPES[name]).astype(np.float32)) for name in NAMES}
    return {name: every[name] for name in NAMES if name in names}


def after(text: str, fleet_by_round, model=None) -> dict[str, torch.Tensor]:
    """Return the model after some rounds."""
    aggregation, model = Aggregation(make_strategy(text)), model or update(NAMES, 0)
    for fleet in fleet_by_round:
        model = one_round(aggregation, model, fleet)
    return model


def one_round(aggregation, model, fleet):
    collector = aggregation.collector()
    for names, weight, seed in fleet:
        collector.add(update(names, seed), weight)
    return aggregation.next_model(model, collector)


def history(fleet_by_round, name: str) -> list[list[tuple[int, np.ndarray]]]:
    """Return of each round in which somebody trained a tensor the weights and updates."""
    by_round = [
        [(w, update(n, s)[name].double().numpy()) for n, w, s in fleet if name in n and w] for fleet in fleet_by_round
    ]
    return [own for own in by_round if own]


def mean_of(own) -> np.ndarray:
    return np.average([x for _, x in own], axis=0, weights=[w for w, _ in own])


# The papers' formulas, on one tensor; x is the model, d the way from it to the clients' mean ----------------------------


def momentum_sgd(means, x, rate, beta):
    """Hsu et al., section 4.3: v = beta v + d, x = x + rate v."""
    v = np.zeros_like(x)
    for mean in means:
        v = beta * v + (mean - x)
        x = np.float32(x + rate * v).astype(float)
    return x


def adaptive(means, x, eta, beta_1, beta_2, tau, second, corrected):
    """Reddi et al., algorithm 2; Adam's correction as in Kingma and Ba, section 2.1."""
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t, mean in enumerate(means, start=1):
        d = mean - x
        m = beta_1 * m + (1 - beta_1) * d
        v = second(v, d**2, beta_2)
        rate = eta * np.sqrt(1 - beta_2**t) / (1 - beta_1**t) if corrected else eta
        x = np.float32(x + rate * m / (np.sqrt(v) + tau)).astype(float)
    return x


def adam(v, square, beta):
    return beta * v + (1 - beta) * square


def yogi(v, square, beta):
    return v - (1 - beta) * square * np.sign(v - square)


def adagrad(v, square, beta):
    return v + square


ORACLES = {
    "fedavg": lambda means, x: means[-1],
    "fedprox:proximal_mu=0.5": lambda means, x: means[-1],
    "fedavgm": lambda means, x: momentum_sgd(means, x, 1.0, 0.5),
    "fedavgm:server_learning_rate=0.5,server_momentum=0.3": lambda means, x: momentum_sgd(means, x, 0.5, 0.3),
    "fedavgm:server_momentum=0": lambda means, x: momentum_sgd(means, x, 1.0, 0.0),
    "fedadam": lambda means, x: adaptive(means, x, 0.01, 0.9, 0.99, 1e-3, adam, True),
    "fedadam:eta=0.1,beta_1=0.5,beta_2=0.8,tau=0.1": lambda means, x: adaptive(means, x, 0.1, 0.5, 0.8, 0.1, adam, True),
    "fedyogi": lambda means, x: adaptive(means, x, 0.01, 0.9, 0.99, 1e-3, yogi, False),
    "fedyogi:eta=0.2,beta_1=0.1": lambda means, x: adaptive(means, x, 0.2, 0.1, 0.99, 1e-3, yogi, False),
    "fedadagrad:eta=0.1": lambda means, x: adaptive(means, x, 0.1, 0.0, 0.0, 1e-3, adagrad, False),
}


@pytest.mark.parametrize("text", ORACLES)
@examples(30)
@given(fleets=rounds)
def test_each_tensor_follows_the_papers_formula_over_the_rounds_in_which_somebody_trained_it(text, fleets):
    start, actual = update(NAMES, 0), after(text, fleets)
    for name in NAMES:
        trained = history(fleets, name)
        x = start[name].double().numpy()
        expected = ORACLES[text]([mean_of(own) for own in trained], x) if trained else x
        np.testing.assert_allclose(actual[name].numpy(), expected, rtol=2e-5, atol=2e-6)
        assert actual[name].dtype == torch.float32


@pytest.mark.parametrize("text", ["median", "trimmed_mean", "trimmed_mean:beta=0.4", "trimmed_mean:beta=0"])
@examples(30)
@given(fleets=rounds)
def test_robust_rules_take_the_clients_that_trained_a_tensor_each_for_one(text, fleets):
    share = {"median": None, "trimmed_mean": 0.2}.get(text, float(text.partition("=")[2] or 0))
    actual = after(text, fleets)
    for name in NAMES:
        trained = history(fleets, name)
        if not trained:
            assert torch.equal(actual[name], update(NAMES, 0)[name])
            continue
        last = np.stack([x for _, x in trained[-1]])
        expected = np.median(last, axis=0) if share is None else trim_mean(last, share)
        np.testing.assert_allclose(actual[name].numpy(), expected, rtol=1e-6, atol=1e-6)


def test_fedadam_is_torchs_adam_where_tau_is_small():
    parameter = torch.nn.Parameter(update(["deep.weight"], 0)["deep.weight"].double())
    optimizer = torch.optim.Adam([parameter], lr=0.01, betas=(0.9, 0.99), eps=1e-12)
    aggregation, model = Aggregation(make_strategy("fedadam:tau=1e-12")), update(NAMES, 0)
    for seed in range(1, 6):
        parameter.grad = parameter.detach() - update(NAMES, seed)["deep.weight"].double()
        optimizer.step()
        model = one_round(aggregation, model, [(NAMES, 1, seed)])
    np.testing.assert_allclose(model["deep.weight"].numpy(), parameter.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("robust", ["median", "trimmed_mean:beta=0.3"])
def test_a_minority_that_lies_does_not_move_the_robust_rules_out_of_the_others_range(robust):
    aggregation = Aggregation(make_strategy(robust))
    collector, honest = aggregation.collector(), [update(NAMES, seed) for seed in range(1, 5)]
    for tensors in honest:
        collector.add(tensors, 10)
    collector.add({name: torch.full(SHAPES[name], 1e6) for name in NAMES}, 1000)
    model = aggregation.next_model(update(NAMES, 0), collector)
    for name in NAMES:
        stacked = torch.stack([tensors[name] for tensors in honest])
        assert bool(((model[name] >= stacked.amin(0)) & (model[name] <= stacked.amax(0))).all())


@pytest.mark.parametrize("text", STRATEGIES)
@examples(30)
@given(fleets=rounds)
def test_what_nobody_trains_stays_to_the_bit_and_so_do_its_moments(text, fleets):
    aggregation, model = Aggregation(make_strategy(text)), update(NAMES, 0)
    for fleet in fleets:
        before = aggregation.optimizer.state() if aggregation.optimizer else {}
        after_it = one_round(aggregation, model, fleet)
        state = aggregation.optimizer.state() if aggregation.optimizer else {}
        idle = set(NAMES) - {name for names, weight, _ in fleet if weight for name in names}
        assert all(torch.equal(after_it[name], model[name]) for name in idle)
        assert all(torch.equal(state[key], tensor) for key, tensor in before.items() if key.rpartition("/")[0] in idle)
        model = after_it


@pytest.mark.parametrize("text", STRATEGIES)
@examples(30)
@given(fleets=rounds, random=st.randoms(use_true_random=False))
def test_the_state_taken_up_again_goes_on_to_the_bit(text, fleets, random):
    cut = random.randint(0, len(fleets))
    aggregation, model = Aggregation(make_strategy(text)), update(NAMES, 0)
    for fleet in fleets[:cut]:
        model = one_round(aggregation, model, fleet)
    again = Aggregation(make_strategy(text))
    if aggregation.optimizer:
        again.optimizer.load({key: tensor.clone() for key, tensor in aggregation.optimizer.state().items()}, model)
    resumed = model
    for fleet in fleets[cut:]:
        model, resumed = one_round(aggregation, model, fleet), one_round(again, resumed, fleet)
    assert all(torch.equal(model[name], resumed[name]) for name in NAMES)


@pytest.mark.parametrize(
    ("key", "tensor"),
    [
        ("tail.weight/m_t", torch.zeros(2, 3)),
        ("deep.weight/momentum_vector", torch.zeros(2, 3)),
        ("deep.weight/m_t", torch.zeros(3, 2)),
        ("deep.weight/v_t", torch.full((2, 3), float("nan"))),
        ("deep.weight/steps", torch.zeros(2)),
        ("deep.weight/steps", torch.tensor(0)),
        ("deep.weight", torch.zeros(2, 3)),
    ],
)
def test_a_state_of_another_model_or_strategy_is_refused(key, tensor):
    with pytest.raises(ConfigError, match=r"server's state"):
        ServerOptimizer(make_strategy("fedadam")).load({key: tensor}, update(NAMES, 0))


@pytest.mark.parametrize("left_out", ["m_t", "v_t", "steps"])
def test_a_state_that_lacks_something_is_refused(left_out):
    aggregation = Aggregation(make_strategy("fedadam"))
    one_round(aggregation, update(NAMES, 0), [(NAMES, 1, 1)])
    state = {key: tensor for key, tensor in aggregation.optimizer.state().items() if key != f"head.bias/{left_out}"}
    with pytest.raises(ConfigError, match=f"lacks 'head.bias/{left_out}'"):
        ServerOptimizer(make_strategy("fedadam")).load(state, update(NAMES, 0))


def test_a_state_made_through_flowers_adagrad_is_taken_up():
    state = {"head.bias/m_t": torch.ones(1), "head.bias/v_t": torch.full((1,), 4.0), "head.bias/steps": torch.tensor(2)}
    aggregation = Aggregation(make_strategy("fedadagrad:eta=1,tau=1"))
    aggregation.optimizer.load(state, update(NAMES, 0))
    model = {"head.bias": torch.zeros(1)}
    stepped = aggregation.optimizer.step("head.bias", model["head.bias"], torch.full((1,), 3.0, dtype=torch.float64))
    assert float(stepped) == pytest.approx(3 / (13**0.5 + 1))


def test_the_state_holds_the_moments_and_steps_of_every_tensor():
    for text in STRATEGIES:
        aggregation = Aggregation(make_strategy(text))
        one_round(aggregation, update(NAMES, 0), [(NAMES, 1, 1)])
        if aggregation.optimizer:
            kept = {f"{name}/{a}" for name in NAMES for a in (*aggregation.strategy.moments, "steps")}
            assert set(aggregation.optimizer.state()) == kept
    assert {text for text in STRATEGIES if make_strategy(text).moments} == set(STEPPING)


# Flower's own classes --------------------------------------------------------------------------------------------------

FLOWER = {"fedavgm": "FedAvgM", "fedadam": "FedAdam", "fedyogi": "FedYogi", "fedadagrad": "FedAdagrad"}


@pytest.mark.parametrize(
    "text", [*STEPPING, "fedavgm:server_momentum=0.9", "fedadam:eta=0.03", "fedadam:beta_2=0.5", "fedyogi:tau=0.1"]
)
def test_models_are_those_of_flowers_strategies_to_the_bit(text):
    """Flower takes one tensor, ours the same; momenta and moments are compared in its own signs."""
    strategy, name = make_strategy(text), "deep.weight"
    rule = getattr(flower, FLOWER[text.partition(":")[0]])(**asdict(strategy))
    aggregation = Aggregation(strategy)
    random, ours = np.random.default_rng(0), {name: torch.randn(2000, generator=torch.Generator().manual_seed(0))}
    theirs = ours[name].clone()
    for number in range(12):
        mean = theirs + torch.from_numpy(random.normal(0, 0.05, 2000).astype(np.float32))
        start = theirs.double().numpy()
        record = ArrayRecord({name: Array(start)})
        rule.current_arrays = record if isinstance(rule, flower.FedAvgM) else {name: start}
        arrays, _ = rule.aggregate_train(number, [FlowerReply(name, mean)])
        theirs = torch.from_numpy(arrays[name].numpy()).float()
        collector = aggregation.collector()
        collector.add({name: mean}, 1)
        ours = aggregation.next_model(ours, collector)
        assert torch.equal(ours[name], theirs)
    for moment in strategy.moments:
        found = getattr(rule, moment)
        expected = found[0] if isinstance(found, list) else found[name]
        torch.testing.assert_close(aggregation.optimizer.state()[f"{name}/{moment}"], torch.from_numpy(expected))


class FlowerReply:
    def __init__(self, name, tensor):
        arrays = ArrayRecord({name: Array(tensor.double().numpy())})
        self.content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})

    def has_error(self):
        return False
