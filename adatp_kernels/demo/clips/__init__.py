"""Synthetic clips: what is in them, questions about them whose answers are known, and the clips as video files."""
