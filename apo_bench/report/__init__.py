"""A run folder in, its report out: Markdown, one HTML page, LaTeX, CSV and figures from one report model."""
