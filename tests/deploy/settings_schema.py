"""The settings in the chart's schema: ``python -m tests.deploy.settings_schema`` writes them from the settings classes.

The chart takes any setting of a process under its own name, except those that it sets itself.
"""

import json
from pathlib import Path
from typing import Any

from services.config import Settings
from services.decode.settings import DecodeSettings
from services.embed.settings import EmbedSettings
from services.gateway.settings import GatewaySettings
from services.prefill.settings import PrefillSettings

SCHEMA_FILE = Path(__file__).parents[2] / "deploy/k8s/values.schema.json"
CLASSES: dict[str, type[Settings]] = {
    "gateway": GatewaySettings,
    "prefill": PrefillSettings,
    "decode": DecodeSettings,
    "embed": EmbedSettings,
}
SET_BY_CHART = frozenset(
    (
        *("host", "port", "advertise_host", "admin_host", "admin_port", "serve_admin_on_main"),
        *("redis_url", "secret_file", "cache_dir", "log_level", "log_json"),
        *("tls_ca_file", "tls_cert_file", "tls_key_file"),
        *("model", "served_model_name", "dtype", "device", "transport", "drain_delay_s", "drain_timeout_s"),
        *("fault_plan", "lenient_objects"),
    )
)
"""Settings that follow from other values, that probes and policies of the chart rely on, or that only tests use."""
KEPT_KEYWORDS = (
    "type",
    "enum",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "anyOf",
    "additionalProperties",
    "description",
)


def settings_schema(settings_class: type[Settings]) -> dict[str, Any]:
    """Return the closed schema of the settings that the chart leaves to its users."""
    properties = settings_class.model_json_schema()["properties"]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            name: {keyword: field[keyword] for keyword in KEPT_KEYWORDS if keyword in field}
            for name, field in properties.items()
            if name not in SET_BY_CHART
        },
    }


def definitions() -> dict[str, Any]:
    """Return the definitions by their names in the schema."""
    return {f"{role}Settings": settings_schema(settings_class) for role, settings_class in CLASSES.items()}


if __name__ == "__main__":
    schema = json.loads(SCHEMA_FILE.read_text())
    schema["definitions"].update(definitions())
    SCHEMA_FILE.write_text(json.dumps(schema, indent=2) + "\n")
