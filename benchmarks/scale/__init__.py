"""How one control plane holds up under many sites, models and discovery streams: `python -m benchmarks.scale`.

plan (pure) <- state, bare <- nodes, streams (a process each) <- run <- __main__; page makes the tables.
"""
