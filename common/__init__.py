"""What every room needs and no room owns. Standard library and filelock; `counter` alone also takes numpy. Never torch."""
