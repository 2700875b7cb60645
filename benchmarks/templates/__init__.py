"""Files that ``consistentee new-...`` copies."""
