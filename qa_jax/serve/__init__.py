"""An HTTP server that clients of OpenAI's API speak to."""

from qa_jax.config.serve import ServeConfig
from qa_jax.serve.app import make_app, run_app

__all__ = ["ServeConfig", "make_app", "run_app"]
