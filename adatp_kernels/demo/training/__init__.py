"""The small Video LLM that answers questions about the clips: its architecture, its training, and what that has to show."""
