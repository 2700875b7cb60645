"""MultiExitDecoder: a stock decoder with exits before its LM head, in kinds, and its files."""
