"""The folder of a run: what it holds, who may write into it, and which run may go on from it."""
