"""Where the project's figures come from: each module that can be run measures one thing and writes to `results/`."""
