"""`python -m convert_weights` is `qa-jax convert`."""

import sys

from qa_jax.cli import main

sys.exit(main(["convert", *sys.argv[1:]]))
