"""The decoder and its initialisation. Parallelism is not in here."""
