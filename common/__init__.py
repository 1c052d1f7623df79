"""Helpers that all packages share.

They need the standard library, filelock and PyYAML; only `counter` also needs numpy. None imports torch.
"""
