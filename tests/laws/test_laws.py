"""A law finds the method that breaks it, and says so with a case that shows it again."""

import pytest
import torch

from fedact.compression import make_method
from fedact.laws import LAWS, cases
from fedact.laws.verdicts import judge
from tests.support.broken_methods import ALSO, BROKEN, Counts, Half


@pytest.mark.parametrize("entry", BROKEN, ids=lambda entry: entry.__name__)
def test_a_law_finds_the_method_that_breaks_it(entry):
    name = BROKEN[entry]
    verdict = judge(name, LAWS[name], entry())
    assert verdict.verdict == "fails"
    assert verdict.reason
    assert "\n" not in verdict.reason
    with pytest.raises(Exception, match=r"."):
        LAWS[name].check(entry(), eval(verdict.case, vars(cases)))


def test_every_law_can_be_broken():
    assert set(BROKEN.values()) | set(ALSO) == set(LAWS)
    assert all(judge(name, LAWS[name], entry()).verdict == "fails" for name, entry in ALSO.items())


@pytest.mark.parametrize("entry", [Half, Counts])
def test_a_good_method_breaks_none(entry):
    found = [judge(name, law, entry(), examples=10) for name, law in LAWS.items()]
    assert {verdict.verdict for verdict in found} <= {"holds", "not checked"}


def test_a_failing_case_is_the_smallest():
    wrong = next(entry for entry, law in BROKEN.items() if law == "input")
    found = eval(judge("input", LAWS["input"], wrong()).case, vars(cases))
    assert found.x.numel() <= 16
    assert len(found.x) == found.x.shape[1] == 1


def test_the_same_cases_are_drawn_each_time_and_others_by_another_seed():
    drawn = []
    law = LAWS["bytes"]

    def check(method, case):
        drawn[-1].append(case)

    for start in (None, None, 1, 1, 2):
        drawn.append([])
        judge("bytes", type(law)(law.sentence, check, law.cases), Half(), 10, start)
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3] != drawn[4]


def test_what_a_method_raises_is_named():
    class Fails(Half):
        def compress(self, x, state=None):
            raise IndexError("out of\nrange")

    class Exits(Half):
        def compress(self, x, state=None):
            raise SystemExit(0)

    assert judge("bytes", LAWS["bytes"], Fails()).reason == "IndexError: out of range"
    assert judge("bytes", LAWS["bytes"], Exits()).reason == "RuntimeError: it exits: SystemExit: 0"


@pytest.mark.parametrize(
    "text",
    [
        "TensorCase(shape=(2, 3), kind='zeros')",
        "StepsCase()",
        "StepsCase(batches=(1, 2), seed=3)",
        "LinearCase(shape=(2, 3, 4))",
        "ConvolutionCase(size=(4, 5), padding='same', groups=2, in_channels=2, out_channels=2)",
    ],
)
def test_the_text_of_a_case_makes_it_again(text):
    case = eval(text, vars(cases))
    again = eval(repr(case), vars(cases))
    assert again == case
    inputs = (lambda each: each.inputs) if isinstance(case, cases.StepsCase) else (lambda each: (each.x,))
    assert all(torch.equal(a, b) for a, b in zip(inputs(case), inputs(again), strict=True))


def test_a_law_that_does_not_apply_says_why():
    assert judge("state", LAWS["state"], make_method("exact")).reason == "the method has no state"
