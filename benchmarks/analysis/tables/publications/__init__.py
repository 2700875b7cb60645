"""Papers' tables, and what they print, beside ours."""
