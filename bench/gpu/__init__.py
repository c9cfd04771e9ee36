"""What a GPU gives: one command, ``python -m bench.gpu``, for anybody who has one."""
