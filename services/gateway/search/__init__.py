"""Vector stores: files are parsed, cut, embedded and found again; docs/files.md."""
