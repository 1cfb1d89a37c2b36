"""What other tools and people exchange with a run: responses out, verdicts in."""
