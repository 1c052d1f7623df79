"""How runs do: their state from their folders, as a live table, as JSON, and as a page."""
