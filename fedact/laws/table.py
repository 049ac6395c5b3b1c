"""The one table of laws: what each says, the cases it is checked on, and where it does not apply."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from fedact.compression import SERIES, Method
from fedact.laws import codecs, gradients, steps
from fedact.laws.strategies import batches, convolutions, inputs, linears, of_shapes, series, tensors, tokens


def always(method: Method) -> str:
    """Return nothing: the law is checked on every method."""
    return ""


def with_gentlest_setting(method: Method) -> str:
    """Return why the law is not checked on a method that names no gentlest setting."""
    return "" if method.traits.gentlest is not None else "the method's traits name no gentlest setting"


def with_loss(method: Method) -> str:
    """Return why the law is not checked on what keeps the very tensor, or nearly so."""
    gentle = method.traits.keeps_input or method.codec == codecs.gentlest(method)
    return "this setting is the gentlest one, which need not be smaller" if gentle else ""


def with_state(method: Method) -> str:
    """Return why the law is not checked on a method without a state."""
    return "" if steps.has_state(method) else "the method has no state"


def fits_series(method: Method) -> str:
    """Return why the law is not checked on a method with ranks for other tensors."""
    return "" if type(method.for_dimensions(SERIES)) is type(method) else "its ranks are for other tensors than series"


@dataclass(frozen=True)
class Law:
    """What every method must obey.

    sentence: what it says. check: raises BrokenLaw, or whatever the method raises, where it does not hold for a case.
    cases: the strategy that they are drawn from. examples: how many of them, relative to other laws. not_checked: why it
    does not apply to a method, "" where it does.
    """

    sentence: str
    check: Callable[[Method, Any], None]
    cases: st.SearchStrategy[Any]
    examples: int = 25
    not_checked: Callable[[Method], str] = always


LAWS: dict[str, Law] = {
    "output": Law(
        "A layer's output, input gradient and bias gradient are the plain layer's, bit for bit.",
        gradients.output_is_plain, convolutions(), 30,
    ),
    "weight_gradient": Law(
        "A convolution's weight gradient is plain autograd's for the reconstruction, in every geometry.",
        gradients.weight_gradient_is_of_the_reconstruction, convolutions(), 30,
    ),
    "linear_layers": Law(
        "A linear layer's gradients are plain autograd's for the reconstruction, of rows and of tokens.",
        gradients.linear_layers_keep_their_input_too, linears(),
    ),
    "series": Law(
        "A convolution of series has the plain output, and plain autograd's gradients for the reconstruction.",
        gradients.sequences_obey_too, series(), 15, fits_series,
    ),
    "tokens": Law(
        "A linear layer on tokens has the plain output, and plain autograd's gradients for the reconstruction.",
        gradients.sequences_obey_too, tokens(), 15,
    ),
    "shape": Law(
        "A reconstruction has the tensor's shape and type, whatever its number of dimensions.",
        codecs.shape_and_type_come_back, tensors(),
    ),
    "bytes": Law(
        "Stored bytes are as predicted, for a shape at most; no view pins more, and nothing hides in the metadata.",
        codecs.bytes_are_as_predicted, inputs(),
    ),
    "views": Law(
        "A view of a large tensor does not keep all of it alive.",
        codecs.a_view_pins_nothing, of_shapes((64, 4, 6, 6)),
    ),
    "gentlest": Law(
        "The gentlest setting loses nothing but rounding.",
        codecs.gentlest_loses_nothing, inputs(), not_checked=with_gentlest_setting,
    ),
    "smaller": Law(
        "A setting that loses something stores fewer bytes than a tensor like a real activation has.",
        codecs.fewer_bytes_than_the_tensor, of_shapes((8, 32, 7, 7)), not_checked=with_loss,
    ),
    "levels": Law(
        "Levels come the least lossy first, and never take more bytes than the one before.",
        codecs.levels_never_get_larger, of_shapes((8, 16, 5, 5)),
    ),
    "repeats": Law(
        "The same tensor gives the same bits, and torch's global generator is never touched.",
        codecs.same_input_same_bits, of_shapes((4, 6, 5, 5), (1, 2, 3, 3)),
    ),
    "input": Law(
        "Compressing changes nothing of its input, and what is stored hangs on no graph.",
        codecs.input_stays_as_it_was, inputs(),
    ),
    "declared": Law(
        "A reconstruction follows from what is stored alone, and from the state where the traits say so.",
        codecs.nothing_undeclared_is_read, inputs(),
    ),
    "channels": Law(
        "Some channels, decoded alone, are those of the whole reconstruction.",
        codecs.some_channels_are_those_of_the_whole, of_shapes((1, 8, 16, 16), (2, 6, 5, 5), (1, 300, 3, 3)),
    ),
    "nan": Law(
        "A NaN is never turned into numbers.",
        codecs.a_nan_stays_one, of_shapes((4, 6, 5, 5)),
    ),
    "types": Law(
        "Half precision, doubles and channels-last tensors go through.",
        codecs.every_type_goes_through, of_shapes((4, 6, 5, 5)),
    ),
    "name": Law(
        "A name says everything and reads back.",
        codecs.a_name_reads_back, st.none(),
    ),
    "steps": Law(
        "A step's bytes are at most those of its shape, whatever came before, and fixed where the method says so.",
        steps.bytes_are_bounded_at_every_step, batches(),
    ),
    "seed": Law(
        "Steps from the same seed store the same bits.",
        steps.same_seed_same_steps, batches(),
    ),
    "state": Law(
        "The tensors of a state are enough to go on from.",
        steps.a_states_tensors_are_enough, batches(), not_checked=with_state,
    ),
    "batch_sizes": Law(
        "A layer keeps one state for batches of every size, and another for examples of another shape.",
        steps.one_state_for_every_batch_size, batches(), not_checked=with_state,
    ),
    "later_nan": Law(
        "A NaN or an infinity in a later step is never turned into numbers.",
        steps.a_later_nan_stays_one, batches(),
    ),
}  # fmt: skip
"""The laws by name; to add one, write its check and its line."""
