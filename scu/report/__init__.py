"""A run, or several, as one page and one picture: write_report in page.py."""

from scu.report.page import write_report

__all__ = ["write_report"]
