"""Which weights: names, folders, GGUF files and packages become one folder that a model loads from."""
