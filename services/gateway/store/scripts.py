"""The Lua functions: files in ``lua/``, put together to the scripts that Redis runs."""

from importlib.resources import files


def _text(*names: str) -> str:
    folder = files(__package__).joinpath("lua")
    return "\n".join(folder.joinpath(f"{name}.lua").read_text(encoding="utf-8") for name in names)


# A file here may add operations to those of a change.
_OPERATIONS = ("removal", "operations", "expiry", "leases", "jobs", "files", "ingestions")

GET = _text("library", "get")
LIST = _text("library", "list")
APPLY = _text("library", *_OPERATIONS, "apply")
PURGE = _text("library", *_OPERATIONS, "purge")
