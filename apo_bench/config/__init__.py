"""What an experiment file may say, and how it is loaded, resolved and overridden."""
