"""What a run is asked for: suites, cells, and the targets that knobs are chosen for."""
