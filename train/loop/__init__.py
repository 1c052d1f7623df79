"""The training loop.

`course` plans the steps, `feed` reads batches, `recorder` writes the record, `start` finds the checkpoint to resume from;
`trainer` is the loop itself.
"""
