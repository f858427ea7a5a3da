"""Exports: what a replay holds, in the forms that spreadsheets, process mining and data tools read."""
