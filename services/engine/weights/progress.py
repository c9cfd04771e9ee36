"""How long-running steps say what they do."""

from collections.abc import Callable

Progress = Callable[[str, float | None], None]
"""Called with a text for people and the share done, 0 to 1, or None while it is not known."""
