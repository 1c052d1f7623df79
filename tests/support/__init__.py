"""What tests share: processes, commands, runs, models, and the references they are compared with."""
