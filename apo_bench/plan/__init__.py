"""What an experiment will spend, counted without a model: every arm played by the counting engine, and how the plan is shown."""
