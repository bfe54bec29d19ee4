"""The report of `softjaccard report`: one HTML file that needs no other, with sections in modules of their own."""

from softjaccard.evaluation.report.page import write_report

__all__ = ["write_report"]
