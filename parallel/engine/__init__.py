"""Engines: what carries out a training step. All behind one protocol."""
