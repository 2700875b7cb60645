"""What every layer says of every row, recorded once, on which any rule is replayed."""
