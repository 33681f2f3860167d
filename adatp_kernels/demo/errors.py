"""What the demo refuses."""

from adatp_kernels.mistakes import Mistake


class DemoError(Mistake):
    """A video that cannot be shown."""
