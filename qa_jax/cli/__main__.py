"""`python -m qa_jax.cli` is `qa-jax`."""

import sys

from qa_jax.cli.main import main

sys.exit(main())
