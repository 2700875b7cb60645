"""What is done with a trained model: its knob is chosen, it is loaded, and it answers."""
