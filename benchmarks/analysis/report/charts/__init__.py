"""Charts of the report, as Vega-Lite draws them."""
