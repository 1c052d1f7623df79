"""Runs as one table: files and folders, expressions over columns, and which rows a law can use."""
