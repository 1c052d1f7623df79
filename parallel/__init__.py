"""Layouts: mesh, sharding, engines. Knows no model class and no configuration."""
