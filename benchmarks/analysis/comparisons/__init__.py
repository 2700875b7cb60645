"""Methods against each other: what is compared with what, and how sure it is."""
