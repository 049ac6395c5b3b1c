from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from fedact.compression import make_method, method_name
from fedact.config.errors import ConfigError
from fedact.config.spec import build, settings, spell, split


@dataclass(frozen=True)
class Plain:
    pass


@dataclass(frozen=True)
class Rich:
    share: float | None = None
    count: int = 2
    flag: bool = False
    ranks: tuple[int, ...] | None = None
    word: str = "a"
    bits: Literal[32, 8] = 32
    kind: Literal["full", "half"] = "full"


@settings("bounded")
class Bounded:
    rate: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    bits: Literal[32, 8] = 32
    count: Annotated[int, Field(ge=1)] = 1
    ranks: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)] | None = None
    flag: bool = False

    def __post_init__(self) -> None:
        if self.flag and self.ranks:
            raise ConfigError("bounded takes flag or ranks, not both")


@settings("bare")
class Bare:
    pass


TABLE = {"plain": Plain, "rich": Rich}


def test_a_name_and_its_settings_are_split_as_written():
    assert split(" rich : share = 0.5 , count=3 ") == ("rich ", {"share": "0.5", "count": "3"})
    assert split("rich") == split("rich:") == ("rich", {})


def test_settings_take_their_types():
    entry = build("thing", TABLE, "rich:share=0.5,count=3,flag=TRUE,ranks=4x40x5,word=b,bits=8,kind=half")
    assert entry == Rich(0.5, 3, True, (4, 40, 5), "b", 8, "half")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rihc", "did you mean 'rich'"), ("", "unknown thing ''"), (":count=1", "unknown thing ''"),
        ("Rich", "did you mean 'rich'"),
        ("rich:cuont=1", "did you mean 'count'"), ("plain:count=1", "no settings"), ("rich:count", "key=value"),
        ("rich:count=", "key=value"), ("rich:=1", "key=value"), ("rich:count=1,count=2", "twice"),
        ("rich:count=one", "'one'"),
        ("rich:count=1.5", "'1.5'"), ("rich:flag=yes", "'yes'"), ("rich:ranks=4xx4", "'4xx4'"), ("rich:ranks=x", "'x'"),
        ("rich:bits=7", "allowed are 32, 8"), ("rich:kind=hlaf", "allowed are full, half"),
        ("rich:share=much", "'much'"), ("rich:__class__=1", "__class__"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(text, said):
    with pytest.raises(ConfigError) as caught:
        build("thing", TABLE, text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_canonical_name_leaves_out_defaults_and_keeps_field_order():
    assert spell("rich", Rich()) == "rich"
    written = build("thing", TABLE, "rich:ranks=1x2,flag=true,share=0.80")
    assert spell("rich", written) == "rich:share=0.8,flag=true,ranks=1x2"
    assert spell("rich", build("thing", TABLE, "rich:count=2")) == "rich"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rate": 0}, "bounded: rate is above 0 and at most 1,000,000, not 0"),
        ({"rate": float("nan")}, "bounded: rate is above 0 and at most 1,000,000, not nan"),
        ({"rate": 1_000_001}, "bounded: rate is above 0 and at most 1,000,000, not 1000001"),
        ({"share": 1}, "bounded: share is at least 0 and below 1, not 1"),
        ({"share": "1"}, "bounded: share is a number, not '1'"),
        ({"bits": 7}, "bounded: bits is one of 32, 8, not 7"),
        ({"count": 0}, "bounded: count is at least 1, not 0"),
        ({"count": True}, "bounded: count is a whole number, not true"),
        ({"count": 1.5}, "bounded: count is a whole number, not 1.5"),
        ({"ranks": (3, 0)}, "bounded: ranks is at least 1, not 0"),
        ({"flag": 1}, "bounded: flag is true or false, not 1"),
        ({"flag": True, "ranks": [2]}, "bounded takes flag or ranks, not both"),
        (
            {"cuont": 1},
            "unknown setting of bounded 'cuont': allowed are bits, count, flag, ranks, rate, share; did you mean",
        ),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_in_one_line(given, said):
    with pytest.raises(ConfigError) as caught:
        Bounded(**given)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_settings_by_position_are_checked_too():
    assert Bounded(1, 0.25, 8) == Bounded(rate=1.0, share=0.25, bits=8)
    assert Bounded(ranks=[1, 2]).ranks == (1, 2)
    for values, said in (
        ((1, 2), "share is at least 0"),
        ((None, 0, 8, 1, None, False, 5), "has 6 settings, but 5 was given"),
    ):
        with pytest.raises(ConfigError, match=said):
            Bounded(*values)
    with pytest.raises(ConfigError, match="bare has no settings, but 3 was given"):
        Bare(3)


entries = st.builds(
    Rich,
    share=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    count=st.integers(),
    flag=st.booleans(),
    ranks=st.none() | st.lists(st.integers(0, 999), min_size=1, max_size=5).map(tuple),
    word=st.text("abcxyz", min_size=1),
)


@given(entries)
def test_the_canonical_name_reads_back_as_the_same_entry(entry):
    assert build("thing", TABLE, spell("rich", entry)) == entry


@given(st.text("rich:sae=,0.1x ", max_size=25))
def test_any_text_gives_an_entry_or_a_config_error(text):
    try:
        build("thing", TABLE, text)
    except ConfigError:
        return


@pytest.mark.parametrize(
    "name", ["vanilla", "exact", "hosvd", "hosvd:variance=0.8", "hosvd:variance=0.1234567", "hosvd:ranks=1x2x3x4"]
)
def test_a_methods_full_name_names_it(name):
    assert method_name(make_method(name)) == name


def test_two_variances_have_two_names():
    assert method_name(make_method("hosvd:variance=0.9999999")) != method_name(make_method("hosvd:variance=1"))
