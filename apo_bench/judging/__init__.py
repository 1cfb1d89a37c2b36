"""Pairwise judging: who is asked, how, and what an answer is worth. docs/judging.md says what and why."""
