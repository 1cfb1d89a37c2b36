"""One optimisation loop for policies and reward models, its batches and its checkpoints."""
