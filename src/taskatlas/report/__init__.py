"""The report: a folder's results joined in one page that opens anywhere."""

from taskatlas.report.page import Section, write_report

__all__ = ["Section", "write_report"]
