"""One log line per change of state, as ``event key=value ...`` or JSON; prompts and tokens are never logged."""

import json
import logging
import sys
from typing import Any


class EventLogger:
    """Writes named events with fields through the standard logging."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def event(self, name: str, *, level: int = logging.INFO, **fields: object) -> None:
        """Log one event; ``fields`` are ids, counts and reasons."""
        self._logger.log(level, name, extra={"fields": fields})

    def warning(self, name: str, **fields: object) -> None:
        """Log something an operator should see."""
        self.event(name, level=logging.WARNING, **fields)

    def failure(self, name: str, error: BaseException, **fields: object) -> None:
        """Log a defect of ours, with its traceback."""
        self._logger.error(name, extra={"fields": fields}, exc_info=error)


def get_logger(module: str) -> EventLogger:
    """Return the event logger of a module (pass ``__name__``)."""
    return EventLogger(logging.getLogger(module))


def configure_logging(*, level: str, as_json: bool, process: str) -> None:
    """Send this process's log to standard error; ``process`` stands in every line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(process) if as_json else _TextFormatter(process))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class _TextFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(levelname).1s " + process + " %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        head, *rest = text.split("\n", 1)
        fields = " ".join(f"{key}={_one_line(value)}" for key, value in _fields(record).items())
        return "\n".join([f"{head} {fields}".rstrip(), *rest])


class _JsonFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": record.created,
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _one_line(value: object) -> str:
    """Return a value so that what a peer named cannot look like another line or another terminal command."""
    text = str(value)
    return text if text.isprintable() else repr(text)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields
