"""Loops, gradients, inputs, hooks and state."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedact
from tests.support.networks import batch, measure, packed_bytes, plain, shared, train


def tail() -> nn.Module:
    torch.manual_seed(0)
    return fedact.compress(nn.Sequential(nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(144, 3)), "exact", layers=1)


def test_raw_inputs_do_not_count_but_a_cached_prefix_output_does():
    model, cached = tail(), torch.randn(2, 4, 8, 8)
    named = measure(model, lambda: model(cached).sum().backward(), cached)
    unnamed = measure(model, lambda: model(cached).sum().backward())
    assert unnamed.saved_bytes == named.saved_bytes + cached.nbytes
    assert unnamed.by_layer["0"] == cached.nbytes
    assert unnamed.hidden_bytes == 0


def test_cached_prefix_outputs_in_a_loop_count_as_the_largest_and_not_as_their_sum():
    model, cached = tail(), [torch.randn(size, 4, 8, 8) for size in (2, 3, 1)]
    one = measure(model, lambda: model(cached[1]).sum().backward())

    def loop() -> None:
        for x in cached:
            model(x).sum().backward()

    assert measure(model, loop).saved_bytes == one.saved_bytes


def test_a_cached_prefix_output_seen_again_is_not_held_in_between():
    model, (small, large) = tail(), (torch.randn(1, 4, 8, 8), torch.randn(3, 4, 8, 8))
    one = measure(model, lambda: model(large).sum().backward())

    def epochs() -> None:
        for x in (small, large, small):
            model(x).sum().backward()

    assert measure(model, epochs).saved_bytes == one.saved_bytes


def test_a_cached_prefix_output_is_alive_at_the_peak_even_where_only_its_factors_are_kept():
    model, cached = nn.Sequential(nn.Conv2d(4, 4, 3)), torch.randn(16, 4, 8, 8)
    fedact.compress(model, "hosvd:ranks=1x1x1x1", layers=1)
    named = measure(model, lambda: model(cached).sum().backward(), cached)
    unnamed = measure(model, lambda: model(cached).sum().backward())
    assert unnamed.saved_bytes == named.saved_bytes
    assert unnamed.peak_bytes == named.peak_bytes + cached.nbytes


def test_gradients_and_optimizer_state_do_not_count():
    torch.manual_seed(0)
    model, (x, y) = fedact.compress(plain(), "exact", layers=2), batch(2)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.1, 0.9)
    first = measure(model, lambda: train(model, x, y), (x, y), optimizer)

    def steps() -> None:
        for _ in range(2):
            train(model, x, y)
            optimizer.step()
            optimizer.zero_grad()

    assert measure(model, steps, (x, y), optimizer).saved_bytes == first.saved_bytes
    assert measure(model, steps, (x, y), optimizer).saved_bytes == first.saved_bytes
    assert measure(model, lambda: train(model, x, y), (x, y), optimizer).peak_bytes <= first.peak_bytes


def test_a_retained_graph_is_held_once_over_two_backward_passes():
    model, (x, y) = fedact.compress(plain(), "vanilla", layers=2), batch(3)

    def twice() -> None:
        loss = F.cross_entropy(model(x), y)
        loss.backward(retain_graph=True)
        loss.backward()

    assert measure(model, twice, (x, y)).saved_bytes == packed_bytes(model, x, y)


def test_two_graphs_held_together_are_their_sum():
    model, (x, y), (x2, y2) = fedact.compress(plain(), "exact", layers=2), batch(3), batch(2)

    def together() -> None:
        losses = [F.cross_entropy(model(a), b) for a, b in ((x, y), (x2, y2))]
        for loss in losses:
            loss.backward()

    expected = packed_bytes(model, x, y) + packed_bytes(model, x2, y2)
    assert measure(model, together, (x, y, x2, y2)).saved_bytes == expected


@pytest.mark.parametrize("method", ["vanilla", "exact"])
def test_a_forward_pass_whose_graph_is_kept_holds_it(method):
    model, (x, y), kept = fedact.compress(plain(), method, layers=2), batch(3), []
    memory = measure(model, lambda: kept.append(F.cross_entropy(model(x), y)), (x, y))
    assert memory.saved_bytes == packed_bytes(model, x, y)


@pytest.mark.parametrize("method", ["vanilla", "exact"])
def test_a_forward_pass_whose_graph_is_dropped_held_it_until_then(method):
    """Section 2: the maximum over a whole step, forward included."""
    model, (x, y) = fedact.compress(plain(), method, layers=2), batch(3)
    memory = measure(model, lambda: F.cross_entropy(model(x), y), (x, y))
    assert memory.saved_bytes == packed_bytes(model, x, y)


@pytest.mark.parametrize("method", ["vanilla", "exact"])
def test_a_dropped_graph_is_not_added_to_a_later_step(method):
    model, (x, y), (x2, y2) = fedact.compress(plain(), method, layers=2), batch(5), batch(2)

    def evaluate_then_train() -> None:
        model(x)
        train(model, x2, y2)

    memory = measure(model, evaluate_then_train, (x, y, x2, y2))
    assert memory.saved_bytes <= packed_bytes(model, x, y)


def test_the_ledger_holds_no_activation_alive_when_a_graph_is_dropped():
    model, (x, _), storages = fedact.compress(plain(), "vanilla", layers=2), batch(5), []
    for module in model:
        module.register_forward_hook(lambda _, args, output: storages.append(weakref.ref(output.untyped_storage())))
    measure(model, lambda: model(x), x)
    assert not any(storage() is not None for storage in storages)


def test_nothing_is_held_without_gradients():
    model, (x, y) = plain(), batch(3)
    with torch.no_grad():
        memory = measure(model, lambda: F.cross_entropy(model(x), y), (x, y))
    assert (memory.saved_bytes, memory.hidden_bytes, memory.by_layer) == (0, 0, {})
    assert memory.peak_bytes >= 3 * 4 * 64 * 4


# Hooks and modules ---------------------------------------------------------------------------------------------------------


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("on purpose")


def hooks(model: nn.Module) -> int:
    tables = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called", "_backward_hooks")
    on_modules = sum(len(getattr(module, table)) for module in model.modules() for table in tables)
    return on_modules + sum(len(getattr(p, "_post_accumulate_grad_hooks", None) or ()) for p in model.parameters())


def test_an_exception_inside_the_block_leaves_no_hook_and_the_next_measurement_is_right():
    broken = nn.Sequential(nn.Conv2d(3, 4, 3), Failing())
    good, (x, y) = fedact.compress(plain(), "exact", layers=2), batch(2)
    with pytest.raises(RuntimeError, match="on purpose"), fedact.measure_memory(broken, inputs=x):
        broken(x)
    assert hooks(broken) == 0
    assert measure(good, lambda: train(good, x, y), (x, y)).saved_bytes == packed_bytes(good, x, y)
    assert hooks(good) == 0


def test_an_exception_that_the_block_catches_does_not_shift_the_owners():
    model, (x, _) = nn.ModuleDict({"bad": Failing(), "good": nn.Linear(8, 4)}), batch(2)

    def step() -> None:
        with pytest.raises(RuntimeError, match="on purpose"):
            model["bad"](x)
        model["good"](x * 2).sum().backward()

    assert list(measure(model, step, x).by_layer) == ["good"]


def test_a_shared_module_is_one_owner_of_both_its_inputs():
    model, (x, y) = fedact.compress(shared(), "exact", layers=1), batch(2)
    memory = measure(model, lambda: train(model, x, y), (x, y))
    assert memory.by_layer["1"] == 2 * (2 * 4 * 8 * 8 * 4)


# State ---------------------------------------------------------------------------------------------------------------------


class Stateful(nn.Linear):
    """A layer that keeps tensors from step to step and says so; ``renew`` replaces them in every step."""

    renew = False

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.state = torch.zeros(100)

    def state_tensors(self) -> list[Tensor]:
        return [self.state, self.state[:10]]

    def forward(self, x: Tensor) -> Tensor:
        self.state = self.state + 1 if self.renew else self.state.add_(1)
        return super().forward(x)


@pytest.mark.parametrize("renew", [False, True], ids=["in place", "replaced"])
def test_declared_state_counts_once_and_is_not_hidden(renew):
    model, x = nn.Sequential(nn.Linear(4, 4), Stateful()), torch.randn(2, 4)
    model[1].renew = renew
    memory = measure(model, lambda: model(x).sum().backward(), x)
    assert memory.state_bytes == 400
    assert memory.saved_bytes == 400 + 2 * 4 * 4
    assert memory.hidden_bytes == 0
    assert sum(memory.by_layer.values()) == memory.saved_bytes - memory.state_bytes
    assert memory.peak_bytes >= memory.saved_bytes


@pytest.mark.parametrize("method", ["vanilla", "exact"])
@pytest.mark.parametrize("named", [True, False])
def test_an_expanded_input_is_its_one_storage(method, named):
    """A gray image as three channels: no method that keeps its input makes it three times as large."""
    model = fedact.compress(nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten(), nn.Linear(16, 1)), method, layers=1)
    gray = torch.ones(1, 1, 4, 4)
    memory = measure(model, lambda: model(gray.expand(-1, 3, -1, -1)).sum().backward(), gray if named else ())
    assert memory.saved_bytes == 16 * 4 + (0 if named else gray.nbytes)
    assert memory.hidden_bytes == 0
