"""Tables: what each shows of some panels, as text, and how they are written."""
