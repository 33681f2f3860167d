"""Property tests that fail do so again, on every machine."""

from hypothesis import settings

settings.register_profile("adatp", max_examples=100, deadline=None, derandomize=True)
settings.load_profile("adatp")
