"""Models behind plain functions: text (tokenizers), policy (sampling, log-probabilities), reward (neural), ngram (linear)."""
