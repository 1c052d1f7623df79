"""Attention within documents, without a mask: which queries see which keys is known on the host, as a list of pieces.

`pieces` says who sees whom, `plan` what is computed together, `kernels` how on which device, `attend` puts it together.
"""
