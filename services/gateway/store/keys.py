"""Names of keys; docs/store.md has the whole layout. The Lua functions build the same names."""

from urllib.parse import quote

from services.gateway.store.kinds import Ref


def project_prefix(project: str) -> str:
    """Return what all keys of a project begin with; braces make it one slot of a Redis Cluster."""
    return f"tandem:{{{quote(project, safe='')}}}:"


def record_key(project: str, ref: Ref) -> str:
    """Return the key of an object's record."""
    return f"{project_prefix(project)}object:{ref.key}"


def attached_key(project: str, ref: Ref, name: str) -> str:
    """Return the key of further data that lives and dies with an object, such as a run's events."""
    return project_prefix(project) + attached_name(ref, name)


def attached_name(ref: Ref, name: str) -> str:
    """Return the same without the project's prefix, as operations name it."""
    return f"attached:{ref.key}/{name}"


def index_name(parent: Ref | None, kind_name: str, label: tuple[str, str] | None = None) -> str:
    """Return the name of the sorted set of a parent's children of one kind, or of those with a label."""
    name = f"index:{parent.key if parent is not None else ''}/{kind_name}"
    return name if label is None else f"{name}/{label[0]}={label[1]}"
