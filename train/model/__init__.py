"""The decoder and its initialisation, without any parallelism."""
