"""The analysis: results folders become long DataFrames, and these become tables, figures and the report.

Nothing here is measured, and nothing measured is changed.
"""
