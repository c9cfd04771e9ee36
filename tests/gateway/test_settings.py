"""Settings of a gateway that contradict each other."""

import pytest
from pydantic import ValidationError

from services.gateway.settings import GatewaySettings


@pytest.mark.parametrize("name", ["run_expiry_s", "response_expiry_s"])
def test_events_are_kept_as_long_as_what_they_are_of_may_live(name: str) -> None:
    settings = {"run_expiry_s": 10.0, "response_expiry_s": 10.0, name: 20.0}
    GatewaySettings.model_validate({**settings, "event_retention_s": 20.0})

    with pytest.raises(ValidationError, match=r"event_retention_s must not be less than run_expiry_s"):
        GatewaySettings.model_validate({**settings, "event_retention_s": 19.0})
