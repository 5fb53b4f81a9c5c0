"""`python -m convert_weights` is `qa-jax convert`."""

import sys

from convert_weights.command import main

sys.exit(main())
