"""What a law is made of: formula and parameters, derivatives, columns, the best run in a budget, a picture."""
