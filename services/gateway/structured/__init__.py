"""Outputs with a structure: schemas within bounds, and the grammars that workers hold outputs to."""
