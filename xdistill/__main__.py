"""`python -m xdistill` is `xdistill`."""

import sys

from xdistill.cli import main

sys.exit(main())
