"""``python -m adatp_kernels`` is the command ``adatp``."""

import sys

from adatp_kernels.cli import main

sys.exit(main())
