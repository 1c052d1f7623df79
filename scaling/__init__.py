"""Run records, laws and fits. Never imports torch."""
