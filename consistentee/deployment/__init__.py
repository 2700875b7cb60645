"""Use a trained model: choose its knob, load it, and get answers."""
