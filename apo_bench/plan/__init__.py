"""What an experiment will spend, counted without a model: sizes, a Lab that only counts, the projection, and how it is shown."""
