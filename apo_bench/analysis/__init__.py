"""Analysis of a finished run: frames in, frames and frozen results out. No model, no torch."""
