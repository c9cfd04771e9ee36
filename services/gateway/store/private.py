"""Private bytes, which gateways of other versions read and write too."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def known_fields(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are fields of a dataclass; those that only a newer version knows are left out."""
    names = {each.name for each in fields(kind)}
    return {name: value for name, value in values.items() if name in names}
