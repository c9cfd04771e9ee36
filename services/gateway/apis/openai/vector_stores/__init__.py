"""Vector stores, their files, file batches and searches."""
