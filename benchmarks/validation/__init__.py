"""Parts of benchmarks/validate_statistics.py: simulated worlds, compared tests, rejection rates, and the page that reports them."""
