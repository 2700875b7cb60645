"""Who decides which rows stop, and what a layer can say of its rows."""
