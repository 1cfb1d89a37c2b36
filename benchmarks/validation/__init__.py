"""What benchmarks/validate_statistics.py is made of: simulated worlds, tests, experiments, and the page that reports them."""
