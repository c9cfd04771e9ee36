"""How much a project may keep."""

from dataclasses import dataclass

from services.errors import QuotaExceeded


@dataclass(frozen=True)
class Quota:
    """Limits of each project; 0 means that there is none."""

    max_objects: int = 0
    max_file_bytes: int = 0

    def encoded(self) -> dict[str, int]:
        """Return the limits by what they are of, as the Lua function reads them."""
        limits = {"objects": self.max_objects, "file_bytes": self.max_file_bytes}
        return {what: limit for what, limit in limits.items() if limit}

    def refusal(self, what: str, used: int) -> QuotaExceeded:
        """Return the error for a change that the project has no room for."""
        things = {"objects": "stored objects", "file_bytes": "bytes of files"}[what]
        limit = self.encoded()[what]
        return QuotaExceeded(
            f"The project has {used} {things} and may have {limit}: this would be more. Delete what is not needed, or "
            f"have `max_project_{what}` raised."
        )
