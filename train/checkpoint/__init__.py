"""Checkpoints: written in the background, counted only once their manifest stands, verified before they are trusted.

<run>/checkpoints/step_00000100/
    .metadata                       which slice of which tensor lies where (torch.distributed.checkpoint)
    __0_0.distcp, __1_0.distcp ...  what each rank wrote
    manifest.json                   sizes and SHA-256 of all files, and where the run stood; written last

`manifest` has the folder and the manifest, `storage` the tensors, `saver` the background, `verify` the trust.
"""
