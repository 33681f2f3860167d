"""``adatp ask``: asks a Video LLM of any supported family about videos and images, with and without pruning."""
