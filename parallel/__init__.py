"""Layouts: meshes, sharding and engines. Depends on no model class and no configuration."""
