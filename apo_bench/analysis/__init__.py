"""What a run says: frames in, frames and frozen results out. No model, no torch."""
