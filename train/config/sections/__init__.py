"""The sections of a configuration: types and documentation here, values in `configs/`.

Every class is one section; every attribute docstring is the help text of its key. If the options of a group have keys of their
own, the section is a union of classes, told apart by `name`.
"""
