"""What a run has to do, what is done, what is published, and how long the rest takes."""
