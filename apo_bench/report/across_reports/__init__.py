"""The living benchmark: one page over all committed reports of a results folder, read from their tables alone."""
