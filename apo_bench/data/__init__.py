"""Tasks: a folder read into checked rows, split by conversation."""
