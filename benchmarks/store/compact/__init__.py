"""The compact form of results, which is published: all cells, timings and rows of a suite in three Parquet files.

``cells.parquet`` has one row a cell, ``timings.parquet`` one a contender and batch size, ``rows.parquet`` one a cell
and test row (its column ``cell`` counts the rows of ``cells.parquet``, from 0), ``validation.parquet`` one a cell and
validation row, where answers of those were kept, and ``study.parquet``, where there is a study of calibration, one a
cell, prompt and threshold. Reading gives back what was written, to the last bit.
"""
