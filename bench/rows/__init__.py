"""The rows that need no cluster: one file each, which measures a part by itself."""
