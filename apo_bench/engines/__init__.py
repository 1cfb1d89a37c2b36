"""What computes behind the Lab: sampling, scoring, log-probabilities, KL and training."""
