"""Tables of papers: the figures that they print, quoted, and ours beside them."""
