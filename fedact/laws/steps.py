"""Laws of what goes from step to step: a method's state, its bytes and its seed."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedact.compression import Compressed, Method, State
from fedact.laws.cases import StepsCase
from fedact.laws.demand import demand
from fedact.measure.memory import stored_bytes
from fedact.nn.surgery import compress


def steps(method: Method, inputs: Sequence[Tensor], seed: int = 0) -> list[Compressed]:
    """Return what is stored of each input, the state going from one to the next."""
    found, state = list[Compressed](), method.start(seed)
    for x in inputs:
        found.append(method.compress(x, state))
        state = found[-1].state
    return found


def bytes_are_bounded_at_every_step(method: Method, case: StepsCase) -> None:
    """Check the bytes of each step, whatever came before: as predicted where shapes alone decide, else at most."""
    for number, (x, (tensors, _, state)) in enumerate(zip(case.inputs, steps(method, case.inputs), strict=True), start=1):
        for what, stored, predicted in (
            ("tensors", stored_bytes(tensors), method.predicted_bytes),
            ("state", stored_bytes(state.tensors), method.predicted_state_bytes),
        ):
            most = predicted(x.shape)
            demand(stored <= most, f"step {number} stores {stored} bytes of {what}, more than the {most} of its shape")
            if method.fixed_size:
                demand(stored == most == predicted(x), f"step {number} stores {stored} bytes of {what} instead of {most}")


def same_seed_same_steps(method: Method, case: StepsCase) -> None:
    """Check that steps from the same seed store the same bits."""
    first, again = (steps(method, case.inputs, seed=7) for _ in range(2))
    pairs = zip(first, again, strict=True)
    same = all(torch.equal(a, b) for one, other in pairs for a, b in zip(one.tensors, other.tensors, strict=True))
    demand(same, "two runs from the same seed store different bits")


def has_state(method: Method) -> bool:
    """Tell whether something goes from step to step."""
    return method.predicted_state_bytes((2, 6, 5, 4)) > 0 or bool(method.start(0).tensors)


def a_states_tensors_are_enough(method: Method, case: StepsCase) -> None:
    """Check that a step can start from the state's tensors alone, which is what a saved and loaded layer has."""
    x, y = case.inputs[:2]
    state = State(method.compress(x).state.tensors)
    found = method.reconstruct(method.compress(y, state))
    demand(
        found.shape == y.shape,
        f"from a loaded state the reconstruction has shape {tuple(found.shape)}, not {tuple(y.shape)}",
    )


def one_state_for_every_batch_size(method: Method, case: StepsCase) -> None:
    """Check that a layer keeps one state, of one size, whatever the batch, and another for examples of another shape."""
    model = compress(nn.Sequential(nn.Conv2d(6, 3, 3)), method, layers=1)
    layer, held = model.get_submodule("0"), set()
    for x in case.inputs:
        model(x).sum().backward()
        held.add(stored_bytes(layer.state_tensors()))  # type: ignore[operator]
    demand(len(held) == 1, f"over batches of {case.batches} a layer's state has {sorted(held)} bytes")
    model(torch.randn(2, 6, 7, 7, generator=torch.Generator().manual_seed(0))).sum().backward()
    grown = stored_bytes(layer.state_tensors())  # type: ignore[operator]
    demand(grown > max(held), "examples of another shape start no state of their own")


def a_later_nan_stays_one(method: Method, case: StepsCase) -> None:
    """Check that a NaN and an infinity in a second step do not come back as numbers."""
    x, y = case.inputs[:2]
    for bad in (torch.nan, torch.inf):
        spoiled = y.clone()
        spoiled[1, 2, 3, 1] = bad
        try:
            found = method.reconstruct(method.compress(spoiled, method.compress(x, method.start(0)).state))
        except FloatingPointError:
            continue
        demand(not found[1].isfinite().all(), f"{bad} in a second step was turned into numbers: raise FloatingPointError")
