"""Run in the rivals' own environments, where nothing of this project is installed."""
