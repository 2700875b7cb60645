"""MultiExitModel: a stock encoder with an internal classifier a layer, its files, and a companion before it."""
