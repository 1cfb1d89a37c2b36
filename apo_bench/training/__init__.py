"""One optimisation loop for policies and reward models, its batches, its checkpoints, and its launch over several processes."""
