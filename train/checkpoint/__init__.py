"""Checkpoints: written in the background, complete once their manifest is written, verified before they are used.

<run>/checkpoints/step_00000100/
    .metadata                       file and offset of every tensor slice (torch.distributed.checkpoint)
    __0_0.distcp, __1_0.distcp ...  the slices that each rank wrote
    manifest.json                   sizes and SHA-256 of all files, and the run's progress; written last

`manifest` handles folders and manifests, `storage` the tensors, `saver` the background writes, `verify` the checks.
"""
