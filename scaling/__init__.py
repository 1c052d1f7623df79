"""Run records, scaling laws, fits, plans and reports. Never imports torch. The rooms, from the ground up:

record.py   what a training run records (standard library only, because the trainer writes it)
laws/       the laws, one file each, and what a law is made of
runs/       runs from files and folders as one table, and which of its rows a law can use
fit/        parameters, intervals and warnings from runs; forecasts; simulated studies
plan/       what to train under a budget, and the words to type
show/       tables, pictures and reports
cli/        the commands
"""
