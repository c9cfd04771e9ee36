"""Checksums of weight files that are known without reading them: published ones, ours, remembered ones."""

import hashlib
import json
import re
from pathlib import Path

CHECKSUMS_FILE = "checksums.json"
"""Written beside converted weights: file name -> hex sha256."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def published_sha256(file: Path) -> str | None:
    """Return the sha256 that came with ``file``, or None.

    Known are the Hub's cache, where a snapshot's file is a link to a blob named by its sha256, the Hub
    client's metadata beside a download into a plain folder, and our own ``checksums.json``.
    """
    return _from_blob_name(file) or _from_hub_metadata(file) or _from_checksums_file(file)


def _from_blob_name(file: Path) -> str | None:
    target = file.resolve()
    is_blob = file.is_symlink() and target.parent.name == "blobs"
    return target.name if is_blob and _SHA256.fullmatch(target.name) else None


def _from_hub_metadata(file: Path) -> str | None:
    metadata = file.parent / ".cache" / "huggingface" / "download" / f"{file.name}.metadata"
    try:
        lines = metadata.read_text(encoding="utf-8").split()
    except OSError:
        return None
    return lines[1] if len(lines) > 1 and _SHA256.fullmatch(lines[1]) else None  # commit, etag, time


def _from_checksums_file(file: Path) -> str | None:
    try:
        checksums = json.loads((file.parent / CHECKSUMS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = checksums.get(file.name) if isinstance(checksums, dict) else None
    return found if isinstance(found, str) and _SHA256.fullmatch(found) else None


def sha256_of(file: Path) -> str:
    """Return the hex sha256 of all bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class RememberedChecksums:
    """Checksums of files that were read once, in a folder of small files; void when size or time changes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, file: Path) -> str | None:
        """Return the sha256 that ``put`` stored for the file as it is now."""
        try:
            record = json.loads(self._path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return str(record["sha256"]) if record.get("stamp") == _stamp(file) else None

    def put(self, file: Path, sha256: str) -> None:
        """Remember what ``sha256_of`` returned."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(file)
        scratch = path.with_suffix(f".{hashlib.sha256(sha256.encode()).hexdigest()[:8]}")
        scratch.write_text(json.dumps({"sha256": sha256, "stamp": _stamp(file)}), encoding="utf-8")
        scratch.rename(path)

    def _path(self, file: Path) -> Path:
        return self._folder / f"{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:32]}.json"


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]
