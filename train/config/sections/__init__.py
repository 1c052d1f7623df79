"""The sections of a configuration: types and documentation here, values in `configs/`.

Every class is one section, every attribute docstring is the help text of its key. Where a group has options with keys of their
own, the section is a union and its `name` tells which.
"""
