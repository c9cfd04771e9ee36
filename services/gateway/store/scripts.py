"""The Lua functions: files in ``lua/``, put together to the two scripts that Redis runs."""

from importlib.resources import files


def _text(*names: str) -> str:
    folder = files(__package__).joinpath("lua")
    return "\n".join(folder.joinpath(f"{name}.lua").read_text(encoding="utf-8") for name in names)


# A file here may add operations to those of a change.
_OPERATIONS = ("operations", "expiry", "leases", "jobs", "files", "ingestions")

LIST = _text("library", "list")
APPLY = _text("library", *_OPERATIONS, "apply")
