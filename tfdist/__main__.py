"""`python -m tfdist` is the `tfdist` command."""

import sys

from tfdist.launch.cli import main

sys.exit(main())
