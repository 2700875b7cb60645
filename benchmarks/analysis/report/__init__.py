"""The report: one HTML file to keep open. Data are chosen here, drawn by Vega-Lite and sorted by DataTables."""
