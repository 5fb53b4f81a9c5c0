"""Scores as a table in the terminal, as JSON, and as one page with every answer and its clip."""

from qa_jax.evaluate.report.html import write_html
from qa_jax.evaluate.report.table import print_differences, print_table, write_json

__all__ = ["print_differences", "print_table", "write_html", "write_json"]
