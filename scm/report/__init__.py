"""Runs side by side: tables, tests, charts, one page."""
