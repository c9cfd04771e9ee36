"""The Assistants API, version 2."""
