"""apo-bench: is this alignment method really better, at the same cost?"""

__version__ = "0.2.0"
