import logging

from prometheus_client import CollectorRegistry

from services.telemetry.defects import count_defects
from services.telemetry.logs import get_logger
from services.telemetry.metrics import counter_values

LOG = get_logger(__name__)


def test_failures_are_counted_and_other_lines_are_not() -> None:
    registry = CollectorRegistry()
    counter = count_defects(registry)
    try:
        assert counter_values(registry) == {"tandem_defects": 0.0}
        LOG.warning("something.odd")
        LOG.event("something", level=logging.ERROR)
        LOG.failure("something.broke", ValueError("why"))
        assert counter_values(registry) == {"tandem_defects": 1.0}
    finally:
        logging.getLogger().removeHandler(counter)
