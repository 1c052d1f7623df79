"""What a layout needs and how long it takes, predicted before it runs."""
