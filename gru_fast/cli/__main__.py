"""`python -m gru_fast.cli` is `gru-fast`."""

import sys

from gru_fast.cli import main

sys.exit(main())
