"""`python -m maskbridge` is the console script."""

import sys

from maskbridge.cli import main

sys.exit(main())
