"""From runs to parameters: solver, intervals, warnings, the file of a fit, forecasts, simulated studies."""
