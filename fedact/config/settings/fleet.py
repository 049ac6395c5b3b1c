"""Settings of the fleet: how many clients, what they do together, and what goes wrong."""

from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from fedact.config.faults import make_faults
from fedact.config.privacy import make_privacy
from fedact.config.settings.base import Positive, Settings
from fedact.config.spec import in_full, spelled_settings
from fedact.config.strategies import make_strategy


class FleetSettings(Settings):
    """The clients and the server."""

    title: ClassVar[str] = "fleet"

    clients: Positive | None = Field(
        20, description="number of simulated clients; --partition clients has as many as the data, or a draw of so many"
    )
    rounds: Annotated[int, Field(ge=0)] = Field(10, description="rounds of federated training")
    sample_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="share of the clients that train in a round"
    )
    strategy: str = Field("fedavg", description="server's aggregation of updates, NAME[:key=value,...], see --list")
    privacy: str = Field("none", description="privacy of an update on the device, NAME[:key=value,...], see --list")
    faults: str = Field(
        "none", description="simulated faults, as shares of the clients: drop=0.1,slow=0.05,corrupt=0.01, see --list"
    )
    deadline: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="seconds that a round waits for a client: simulated in a simulation, real elsewhere [no limit]"
    )
    evaluate_every: Positive = Field(
        1, description="rounds between evaluations of the global model; also before the first and after the last"
    )

    @field_validator("strategy")
    @classmethod
    def _strategy_in_full(cls, value: str) -> str:
        return in_full(value, make_strategy)

    @field_validator("privacy")
    @classmethod
    def _privacy_in_full(cls, value: str) -> str:
        return in_full(value, make_privacy)

    @field_validator("faults")
    @classmethod
    def _faults_in_full(cls, value: str) -> str:
        return spelled_settings(make_faults(value)) or "none"
