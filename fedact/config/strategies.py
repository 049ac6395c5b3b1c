"""How the server makes the next model of what the clients trained: the one table of strategies and their settings.

training/server_optimizer.py and federation/aggregation.py carry them out.
"""

from dataclasses import dataclass
from functools import cache
from typing import Annotated, ClassVar

from pydantic import Field

from fedact.config.spec import build, settings

Rate = Annotated[float, Field(gt=0, le=1_000_000)]
Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Strategy:
    """How the server makes the next model of a round's updates; its fields are its settings, named as in Flower's class.

    source: the paper. moments: what its optimizer carries from round to round, one value for each entry of a tensor, by the
    names they have in a checkpoint.
    """

    source: ClassVar[str]
    moments: ClassVar[tuple[str, ...]] = ()

    @property
    def pull(self) -> float:
        """FedProx's mu, the weight of the proximal term in the clients' loss; 0 for other strategies."""
        return 0.0


@settings("fedavg")
class FedAvg(Strategy):
    """The mean of the updates, weighted by examples."""

    source: ClassVar[str] = "McMahan et al., AISTATS 2017, arXiv 1602.05629"


@settings("fedprox")
class FedProx(Strategy):
    """FedAvg; clients add proximal_mu * (w - received w) to their gradients, before these are clipped."""

    source: ClassVar[str] = "Li et al., MLSys 2020, arXiv 1812.06127"
    proximal_mu: Annotated[float, Field(ge=0, le=1_000_000)] = 0.01

    @property
    def pull(self) -> float:
        return self.proximal_mu


@settings("fedavgm")
class FedAvgM(Strategy):
    """SGD with momentum on the server, whose gradient is the model minus the clients' mean."""

    source: ClassVar[str] = "Hsu et al., 2019, arXiv 1909.06335"
    moments: ClassVar[tuple[str, ...]] = ("momentum_vector",)
    server_learning_rate: Rate = 1.0
    server_momentum: Share = 0.5


@dataclass(frozen=True)
class _Adaptive(Strategy):
    source: ClassVar[str] = "Reddi et al., ICLR 2021, arXiv 2003.00295"
    eta: Rate = 0.01
    beta_1: Share = 0.9
    beta_2: Share = 0.99
    tau: Rate = 1e-3


@settings("fedadam")
class FedAdam(_Adaptive):
    """Adam on the server, with Kingma and Ba's correction for moments that start from zero."""

    moments: ClassVar[tuple[str, ...]] = ("m_t", "v_t")


@settings("fedyogi")
class FedYogi(_Adaptive):
    """Yogi on the server: as Adam, but the second moment moves by no more than the newest square."""

    moments: ClassVar[tuple[str, ...]] = ("m_t", "v_t")


@settings("fedadagrad")
class FedAdagrad(Strategy):
    """Adagrad on the server: steps shrink as squares add up."""

    source: ClassVar[str] = _Adaptive.source
    moments: ClassVar[tuple[str, ...]] = ("v_t",)
    eta: Rate = 0.01
    tau: Rate = 1e-3


@settings("median")
class Median(Strategy):
    """The median of the updates, entry by entry; every client counts the same."""

    source: ClassVar[str] = "Yin et al., ICML 2018, arXiv 1803.01498"


@settings("trimmed_mean")
class TrimmedMean(Strategy):
    """The mean without the share beta of lowest and of highest updates, entry by entry; every client counts the same."""

    source: ClassVar[str] = "Yin et al., ICML 2018, arXiv 1803.01498"
    beta: Annotated[float, Field(ge=0, lt=0.5)] = 0.2


STRATEGIES: dict[str, type[Strategy]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedadagrad": FedAdagrad,
    "median": Median,
    "trimmed_mean": TrimmedMean,
}
"""The one table of strategies."""


@cache
def make_strategy(text: str) -> Strategy:
    """Return the strategy behind ``NAME:key=value,...``; raises ConfigError for one that is not there."""
    return build("strategy", STRATEGIES, text)
