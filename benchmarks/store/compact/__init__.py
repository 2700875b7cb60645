"""Results as a few small Parquet files, from which every record and row reads back equal."""
