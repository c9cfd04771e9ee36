"""The embedding worker: texts, as token ids, to vectors."""
