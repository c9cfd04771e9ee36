"""Redis as the database of API objects: docs/store.md."""
