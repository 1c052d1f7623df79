"""From fits to decisions: the best run under a budget, its alternatives, and the commands that train it."""
