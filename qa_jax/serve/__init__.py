"""An HTTP server that clients of OpenAI's API speak to."""

from qa_jax.serve.app import make_app, run_app, start_logs

__all__ = ["make_app", "run_app", "start_logs"]
