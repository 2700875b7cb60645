"""What a report shows of each kind of results, as data: standings, leaderboard, points, curves, exits."""
