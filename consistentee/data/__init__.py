"""What is read: rows and their splits, their encoding, and what answers score."""
