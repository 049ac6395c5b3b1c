"""The settings of every method on which the laws of ``fedact.laws`` are tested."""

from fedact.compression import METHODS, make_method, method_name
from fedact.laws.inputs import INPUTS as INPUTS
from fedact.laws.inputs import relative_error as relative_error

GENTLEST = {
    name: ":".join(filter(None, (name, entry.traits.gentlest)))
    for name, entry in METHODS.items()
    if entry.traits.gentlest is not None
}
"""The setting of each method that loses nothing but rounding."""
ROUNDING = {name: entry.traits.rounding for name, entry in METHODS.items()}
"""How far the gentlest setting may be off, relatively."""
LOSSY = [
    "hosvd",
    "hosvd:variance=0.5",
    "hosvd:ranks=1x2x2x2",
    "hosvd:variance=0.8,truncation=sequential",
    "hosvd:ranks=2x3x2x1,truncation=sequential",
    "hosvd:variance=0.9,bits=8",
    "hosvd:variance=0.9,bits=4",
    "hosvd:variance=0.8,solver=svd",
    "hosvd:variance=0.8,batch=false",
    "hosvd:variance=0.8,mean=true",
    "hosvd:ranks=2x2x2,truncation=sequential,bits=8,solver=svd,batch=false,mean=true",
    "tucker:ranks=1x2x2x2",
    "tucker:variance=0.7",
    "svd:variance=0.6",
    "svd:ranks=1",
    "channel_svd:variance=0.6",
    "channel_svd:ranks=1",
    "asi:variance=0.8",
    "asi:ranks=2x2x2x2",
    "lance:variance=0.8",
    "lance:ranks=2x2x2",
    "gradient_filter:patch=2",
    "gradient_filter:patch=4",
    "gradient_filter:patch=7",
    "quantize:bits=8",
    "quantize:bits=4",
    "quantize:bits=2",
    "transform",
    "transform:variance=0.8",
    "transform:bits=0.5,derive=0",
    "transform:variance=0.99,bits=1.5",
    "division",
    "division:block=3,bits=4",
    "topk",
    "topk:share=0.02",
    "random_projection",
    "random_projection:ratio=0.5",
]
"""Settings that really lose something."""

OF_SERIES = ["hosvd:ranks=2x3x4", "asi:ranks=2x2x3", "lance:ranks=2x3", "tucker:ranks=1x2x4"]
"""Ranks for tokens and series."""

MADE_AGAIN = ["exact:derive=2", "transform:derive=2", "hosvd:variance=0.9,derive=1"]
"""Settings that keep fewer tensors, and make others again."""

EVERY_SETTING = [*GENTLEST.values(), *LOSSY, *MADE_AGAIN]

ALONE = list(dict.fromkeys(method_name(make_method(text).codec) for text in EVERY_SETTING))
"""The same for layers that are looked at alone, without the one whose input theirs is made again from."""

assert set(GENTLEST) == set(METHODS), "a new method names its gentlest setting in its traits"
