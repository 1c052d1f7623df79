"""The loop of a run: what it does when, what it reads and writes, and how it ends.

`course` says when, `feed` brings batches, `recorder` writes, `start` says where it goes on from; `trainer` is the loop itself.
"""
