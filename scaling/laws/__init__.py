"""The laws, by the names users type."""
