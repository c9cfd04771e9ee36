"""Counts the defects of this process that it met and survived, so that they can be alerted on; the log says which."""

import logging

from prometheus_client import CollectorRegistry, Counter


class DefectCounter(logging.Handler):
    """Counts what ``EventLogger.failure`` logs, wherever in the process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(logging.ERROR)
        self._defects = Counter(
            "tandem_defects", "Defects of Tandem itself that this process met and survived.", registry=registry
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Count a record that has an error with it."""
        if record.exc_info:
            self._defects.inc()


def count_defects(registry: CollectorRegistry) -> DefectCounter:
    """Count from now on; after ``configure_logging``, which takes other handlers away."""
    counter = DefectCounter(registry)
    logging.getLogger().addHandler(counter)
    return counter
