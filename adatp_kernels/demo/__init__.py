"""The main job in one command: a video and a question go in, an answer with and without pruning comes out."""
