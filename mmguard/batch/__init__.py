"""Safe training data in batch: rows of prompts and pictures in, guarded answers out."""
