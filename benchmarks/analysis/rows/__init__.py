"""The rows of tables: operating points chosen on validation data, averaged over seeds, and their answers."""
