"""Small random models of every family, and tasks for them: where a method is checked in seconds."""
