"""Files that clients upload: docs/files.md."""
