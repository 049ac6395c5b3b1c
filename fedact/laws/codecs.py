"""Laws of a codec alone: what ``compress`` stores, what ``reconstruct`` returns, and what neither may do."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedact.compression import Compressed, Method, State, make_method, method_name
from fedact.config.spec import fill, written_settings
from fedact.laws.cases import TensorCase
from fedact.laws.demand import demand
from fedact.laws.inputs import relative_error
from fedact.measure.memory import stored_bytes

HALF = 0.15
"""How far half precision may be off, relatively: where it rounds a value over an edge, its code is another one."""


def rebuilt(method: Method, x: Tensor) -> Tensor:
    """Return what the backward pass sees of a tensor in a first step."""
    return method.reconstruct(method.compress(x))


def bytes_are_as_predicted(method: Method, case: TensorCase) -> None:
    """Check stored bytes and the state's against the method's own account, and that no view pins more than it shows."""
    x, method = case.x, method.for_dimensions(case.x.dim())
    tensors, metadata, state = method.compress(x)
    stored, kept = stored_bytes(tensors), stored_bytes(state.tensors)
    demand(
        method.predicted_bytes(x) == stored,
        f"{stored} bytes are stored, but predicted_bytes says {method.predicted_bytes(x)}",
    )
    said = method.predicted_state_bytes(x)
    demand(said == kept, f"the state has {kept} bytes, but predicted_state_bytes says {said}")
    shown = sum(tensor.nbytes for tensor in [*tensors, *state.tensors])
    pinned = stored_bytes([*tensors, *state.tensors])
    demand(pinned == shown, f"tensors of {shown} bytes pin storages of {pinned}: store copies, not views")
    most, most_kept = method.predicted_bytes(x.shape), method.predicted_state_bytes(x.shape)
    demand(stored <= most, f"{stored} bytes are stored, but predicted_bytes of the shape says at most {most}")
    demand(kept <= most_kept, f"the state has {kept} bytes, but predicted_state_bytes of the shape says at most {most_kept}")
    if method.fixed_size:
        demand(
            stored == most, f"{stored} bytes are stored instead of {most}, though fixed_size says that shapes alone decide"
        )
    demand(not list(tensors_in(metadata)), "the metadata holds a tensor, which nothing counts: tensors go among the tensors")


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, tuple | list | set):
        for each in value:
            yield from tensors_in(each)


def a_view_pins_nothing(method: Method, case: TensorCase) -> None:
    """Check that some examples of a large tensor do not keep all of it."""
    tensors = method.compress(case.x[3:5]).tensors
    shown, pinned = sum(tensor.nbytes for tensor in tensors), stored_bytes(tensors)
    demand(pinned == shown, f"of a view, tensors of {shown} bytes pin storages of {pinned}: store copies, not views")


def shape_and_type_come_back(method: Method, case: TensorCase) -> None:
    """Check that a reconstruction has the tensor's shape and type."""
    kept = method.for_dimensions(len(case.shape))
    found = rebuilt(kept, case.x)
    demand(found.shape == case.x.shape, f"the reconstruction has shape {tuple(found.shape)}, the tensor {case.shape}")
    demand(found.dtype is case.x.dtype, f"the reconstruction is {found.dtype}, the tensor {case.x.dtype}")


def gentlest(method: Method) -> Method | None:
    """Return the method at its gentlest setting, None where its traits name none."""
    written = method.traits.gentlest
    name = type(method).__name__
    return None if written is None else fill(type(method), name, written_settings(written, written), written)


def gentlest_loses_nothing(method: Method, case: TensorCase) -> None:
    """Check that the gentlest setting is off by no more than its rounding."""
    kept = gentlest(method)
    assert kept is not None
    off, size = (rebuilt(kept, case.x) - case.x).norm(), case.x.norm()
    allowed = method.traits.rounding
    demand(off <= allowed * size, f"the gentlest setting is {float(off / size):.3g} off, relatively, and may be {allowed:g}")


def fewer_bytes_than_the_tensor(method: Method, case: TensorCase) -> None:
    """Check that a tensor like a real activation is stored in fewer bytes than it has."""
    x = case.x.relu().cumsum(2)
    stored = stored_bytes(method.compress(x).tensors)
    demand(stored < x.nbytes, f"{stored} bytes are stored of a tensor of {x.nbytes}")


def levels_never_get_larger(method: Method, case: TensorCase) -> None:
    """Check that levels come the least lossy first, and never take more bytes than the one before."""
    x = case.x.relu()
    levels = method.levels(x)
    sizes = [each.ceiling.predicted_bytes(x) for each in levels.values()]
    demand(list(levels) == sorted(levels, reverse=True), f"levels {list(levels)} do not fall")
    demand(sizes == sorted(sizes, reverse=True), f"levels {list(levels)} take {sizes} bytes, which do not fall")


def same_input_same_bits(method: Method, case: TensorCase) -> None:
    """Check that compressing twice gives the same, and that torch's global generator is never touched."""
    before = torch.random.get_rng_state()
    first, second = (method.compress(case.x).tensors for _ in range(2))
    same = len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    demand(same, "compressing a tensor twice stores different bits: what is random follows from the state's seed")
    untouched = torch.equal(before, torch.random.get_rng_state())
    demand(untouched, "torch's global generator was used: what is random follows from the state's seed")


def input_stays_as_it_was(method: Method, case: TensorCase) -> None:
    """Check that compressing changes nothing of its input, and that what is stored hangs on no graph."""
    x, method = case.x.clone().requires_grad_(), method.for_dimensions(case.x.dim())
    with torch.no_grad():
        tensors, _, state = method.compress(x)
    demand(torch.equal(x, case.x), "compress changes its input in place")
    hanging = any(tensor.grad_fn is not None for tensor in [*tensors, *state.tensors])
    demand(not hanging, "what is stored hangs on autograd's graph, which keeps more than is stored")


def nothing_undeclared_is_read(method: Method, case: TensorCase) -> None:
    """Check that a reconstruction follows from what is stored, and from the state only where the traits say so."""
    method = method.for_dimensions(case.x.dim())
    compressed = method.compress(case.x)
    first = method.reconstruct(compressed).clone()
    method.compress(-2 * case.x)
    demand(
        torch.equal(first, method.reconstruct(compressed)), "a reconstruction changes after another tensor was compressed"
    )
    if not method.traits.reads_state:
        alone = Compressed(compressed.tensors, compressed.metadata, State((), compressed.state.metadata))
        same = torch.equal(first, method.reconstruct(alone))
        demand(same, "reconstruct reads the state, which is not kept for it unless traits.reads_state says so")
    if method.traits.keeps_input:
        demand(torch.equal(first, case.x), "traits.keeps_input says that the very input is stored, but another comes back")


def some_channels_are_those_of_the_whole(method: Method, case: TensorCase) -> None:
    """Check channels that are decoded alone."""
    x = case.x.to(memory_format=torch.channels_last)
    compressed = method.compress(x, method.start(1))
    whole, channels = method.reconstruct(compressed), x.shape[1]
    for part in (range(channels), range(1), range(2, 5), range(channels - 1, channels)):
        same = torch.equal(method.reconstruct_channels(compressed, part), whole[:, part.start : part.stop])
        demand(same, f"channels {part.start} to {part.stop - 1} alone are not those of the whole reconstruction")


def a_nan_stays_one(method: Method, case: TensorCase) -> None:
    """Check that a NaN comes back as one, or that FloatingPointError is raised."""
    x = case.x.clone()
    x[1, 2, 3, 4] = torch.nan
    try:
        found = rebuilt(method, x)
    except FloatingPointError:
        return
    demand(found.isnan().any(), "a NaN was turned into numbers: keep it, or raise FloatingPointError")


def every_type_goes_through(method: Method, case: TensorCase) -> None:
    """Check bfloat16, float64 and channels-last tensors against float32's reconstruction."""
    x = case.x.relu()
    reference = rebuilt(method, x)
    half = max(HALF, relative_error(reference, x))
    for variant, tolerance in ((x.bfloat16(), half), (x.double(), 1e-4), (x.to(memory_format=torch.channels_last), 1e-4)):
        found = rebuilt(method, variant)
        layout = "" if variant.is_contiguous() else ", channels last"
        demand(found.dtype is variant.dtype, f"the reconstruction of {variant.dtype}{layout} is {found.dtype}")
        off = relative_error(found.float(), reference)
        demand(off < tolerance, f"the reconstruction of {variant.dtype}{layout} is {off:.3g} off float32's")


def a_name_reads_back(method: Method, case: None) -> None:
    """Check that the canonical name makes an equal method, and that methods are values."""
    again = make_method(method_name(method), check=False)
    demand(again == method, f"{method_name(method)!r} reads back as another method, {again}")
    demand(hash(again) == hash(method) and replace(method) == method, "equal methods have different hashes")
