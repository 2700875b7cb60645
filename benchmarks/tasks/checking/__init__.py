"""check-task: every row of a task read, counted and compared between splits."""
